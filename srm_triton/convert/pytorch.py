"""Networks as modules of `torch.nn` and neurons apart, for tools that look at modules."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from srm_triton.convert.chain import Neurons, split
from srm_triton.neuron import SRMNeuron
from srm_triton.ops.srm_membrane import srm_membrane
from srm_triton.parameters import SRMParameters


def to_torch(network: nn.Module, *, batch_first: bool = True) -> nn.Sequential:
    """A network as modules of `torch.nn`, with the weights that it applies, and neurons: the same outputs.

    For tools that hook into `nn.Linear`, convolutions and activations, such as NeuroBench's metrics, which see what
    arrives at each of them. It holds copies of the weights, and gradients are surrogate gradients.

    Args:
        network: layers of this package, in `nn.Sequential`, in evaluation if it holds dropout.
        batch_first: False for [time, batch, ...].

    Raises:
        TypeError: for other modules.

    Example:
        >>> from neurobench.metrics.static import Footprint
        >>> from neurobench.models import TorchModel
        >>> from srm_triton import SRMLinear
        >>> model = TorchModel(to_torch(nn.Sequential(SRMLinear(6, 4), SRMLinear(4, 2))))
        >>> model.add_activation_module(SRMNeuron)
        >>> [type(layer).__name__ for layer in model.connection_layers()]
        ['Linear', 'Linear']
    """
    modules = nn.Sequential()
    for name, part in split(network).items():
        module: nn.Module
        if not isinstance(part, Neurons):
            module = part if isinstance(part, nn.Linear) else _EachStep(part)
        elif not part.fires:
            module = _Potential(SRMNeuron(part.parameters, batch_first=batch_first))
        elif part.recurrent is None:
            module = SRMNeuron(part.parameters, gradient="surrogate", batch_first=batch_first)
        else:
            module = _Recurrent(part.parameters, part.recurrent, batch_first)
        modules.add_module(name, module)
    return modules.train(network.training)


class _EachStep(nn.Module):
    """A module that maps samples, at each step."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        return cast("Tensor", self.module(inputs.flatten(0, 1))).unflatten(0, inputs.shape[:2])


class _Potential(nn.Module):
    """Neurons of which the potential is the output."""

    def __init__(self, neuron: SRMNeuron) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, current: Tensor) -> Any:
        return srm_membrane(current, self.neuron.srm_parameters, batch_first=self.neuron.batch_first)


class _Recurrent(SRMNeuron):
    """Neurons that receive their own spikes, a step later."""

    def __init__(self, parameters: SRMParameters, weight: Tensor, batch_first: bool) -> None:
        super().__init__(parameters, gradient="surrogate", batch_first=batch_first)
        like: Any = {"device": weight.device, "dtype": weight.dtype}
        self.recurrent = skip_init(nn.Linear, *weight.shape, bias=False, **like)
        with torch.no_grad():
            self.recurrent.weight.copy_(weight)

    def forward(self, current: Tensor) -> Tensor:  # type: ignore[override]
        axis = 1 if self.batch_first else 0
        last, state, spikes = torch.zeros_like(current.narrow(axis, 0, 1)), None, []
        for t in range(current.shape[axis]):
            last, state = super().forward(current.narrow(axis, t, 1) + self.recurrent(last), state, return_state=True)
            spikes.append(last)
        return torch.cat(spikes, axis)
