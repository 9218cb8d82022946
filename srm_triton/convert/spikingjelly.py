"""Exchange of networks with SpikingJelly.

    IFNode     v ← v + x                            LIFNode     v ← v + (x − (v − v_reset))/τ     decay_input=True
    spike = v ≥ v_threshold                                     v ← v − (v − v_reset)/τ + x       decay_input=False
    at a spike: v = v_reset, or v − v_threshold for None        ParametricLIFNode: the same, τ is learned

With u = v − v_reset, times τ with decay_input, this is the neuron with τ_s = 1 and the threshold v_threshold − v_reset,
times τ likewise; as it fires at the threshold too, the next number below it stands for it. SpikingJelly rounds in
another order: where a potential comes within rounding of the threshold, a spike may differ.
"""

import math
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from srm_triton.convert.chain import LAYERS, Before, Neurons, affine_like, join, plain_parts, split
from srm_triton.layers import LayerOptions
from srm_triton.parameters import SRMParameters

_WRAPPED = (
    *LAYERS,
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.AvgPool2d, nn.Flatten, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)


def from_spikingjelly(network: nn.Module, **options: Unpack[LayerOptions]) -> nn.Module:
    """The layers that a network of SpikingJelly consists of; inputs begin with [batch, time] unless options say else.

    Args:
        network: `layer.Linear`, `layer.Conv2d` and so on, or those of `torch.nn`, with `neuron.IFNode`, `LIFNode` or
            `ParametricLIFNode` behind them, in `nn.Sequential` and `layer.SeqToANNContainer`, in either step mode; in
            evaluation if it holds batch normalisation or dropout. Or a neuron alone, which becomes an `SRMNeuron`.
        **options: as in `SRMLayer`, for all layers, but for the gradient, which is ``"surrogate"`` unless given, and
            ``output``, which the last layer has.

    Raises:
        TypeError: for modules without a counterpart.
        ValueError: for neurons with a soft reset (``v_reset=None``), or modules in training that must not be.

    Example:
        >>> from spikingjelly.activation_based import layer, neuron
        >>> network = nn.Sequential(layer.Linear(6, 4), neuron.LIFNode(tau=2.0))
        >>> from_spikingjelly(network)[0].neuron.threshold
        tensor(2.0000, dtype=torch.float64)
    """
    from spikingjelly.activation_based import layer

    wrapped = {getattr(layer, kind.__name__): kind for kind in _WRAPPED if hasattr(layer, kind.__name__)}
    layers = join(plain_parts(network, _from_node, wrapped, layer.SeqToANNContainer), options)
    return layers if isinstance(network, nn.Sequential) else layers[0]


def to_spikingjelly(network: nn.Module) -> nn.Sequential:
    """A network as modules of SpikingJelly in step mode "m", for inputs [time, batch, ...].

    Constants of gradients are left out, and dropout too.

    Args:
        network: layers of this package, in `nn.Sequential`, in evaluation if it holds dropout.

    Raises:
        TypeError: for modules without a counterpart.
        ValueError: for neurons with τ_s > 1 or several values of a constant, recurrence, or potentials as output.

    Example:
        >>> from srm_triton import SRMLinear
        >>> network = nn.Sequential(SRMLinear(6, 4, SRMParameters(tau_m=10.0, tau_s=1.0))).eval()
        >>> inputs = torch.rand(2, 20, 6)
        >>> torch.equal(to_spikingjelly(network)(inputs.transpose(0, 1)).transpose(0, 1), network(inputs))
        True
    """
    from spikingjelly.activation_based import functional, layer

    modules, dtype = nn.Sequential(), torch.get_default_dtype()
    for name, part in split(network).items():
        if isinstance(part, Neurons):
            modules.add_module(name, _to_node(name, part, dtype))
            continue
        kind = getattr(layer, type(part).__name__)
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            dtype = part.weight.dtype
            modules.add_module(name, affine_like(part, part.weight, kind))
        elif isinstance(part, nn.AvgPool2d):
            modules.add_module(name, kind(part.kernel_size, part.stride, part.padding))
        else:
            modules.add_module(name, kind(*(getattr(part, dim) for dim in ("start_dim", "end_dim"))))
    functional.set_step_mode(modules, "m")
    return modules


def _from_node(name: str, module: Any, before: Before) -> Neurons | None:
    from spikingjelly.activation_based import neuron

    if not isinstance(module, neuron.BaseNode):
        return None
    if type(module) not in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode):
        current = "resets the membrane potential and leaves the synaptic current, where an SRM neuron resets both"
        difference = current if type(module) is neuron.CUBALIFNode else "has other equations than an SRM neuron"
        raise TypeError(
            f"{name}: must be an IFNode, LIFNode or ParametricLIFNode of SpikingJelly, got {type(module).__name__}, "
            f"which {difference}"
        )
    if module.v_reset is None:
        raise ValueError(
            f"{name}: must have a v_reset, to which an SRM neuron returns after a spike, got {type(module).__name__} "
            "with v_reset=None, which subtracts the threshold"
        )
    tau, gain = math.inf, 1.0
    if type(module) is neuron.LIFNode:
        tau = module.tau
    elif type(module) is neuron.ParametricLIFNode:
        tau = 1 / float(module.w.detach().to(torch.float64).sigmoid())
    if type(module) is not neuron.IFNode and module.decay_input:
        gain = tau
    height = (module.v_threshold - module.v_reset) * gain
    if not height > 0:
        raise ValueError(f"{name}: must have v_threshold above v_reset, got {module.v_threshold} and {module.v_reset}")
    return Neurons(SRMParameters(tau, 1.0, threshold=_next(height, -math.inf, before.dtype)))


def _next(value: float, towards: float, dtype: torch.dtype) -> Tensor:
    """The next number of a dtype, so that u > it just if u ≥ the value, or the reverse."""
    here = torch.tensor(value, dtype=dtype)
    return here.nextafter(torch.tensor(towards, dtype=dtype)).to(torch.float64)


def _to_node(name: str, part: Neurons, dtype: torch.dtype) -> nn.Module:
    from spikingjelly.activation_based import neuron

    parameters = part.parameters
    if not part.fires or part.recurrent is not None:
        what = "whose potentials are the output" if part.recurrent is None else "with recurrence"
        raise ValueError(f"{name}: SpikingJelly has no neurons {what} for which a step at a time is the same")
    if (parameters.tau_s != 1).any():
        raise ValueError(f"{name}: LIFNode has no synaptic current, tau_s must be 1, got {parameters}")
    constants = parameters.tau_m.detach(), parameters.threshold.detach()
    if not all(bool((value == value.flatten()[0]).all()) for value in constants):
        raise ValueError(
            f"{name}: must have one value for all neurons, as a node of SpikingJelly has, got {parameters}"
        )
    tau, threshold = (float(value.flatten()[0]) for value in constants)
    height = float(_next(threshold, math.inf, dtype))
    if math.isinf(tau):
        return cast("nn.Module", neuron.IFNode(v_threshold=height, v_reset=0.0))
    return cast("nn.Module", neuron.LIFNode(tau, decay_input=False, v_threshold=height, v_reset=0.0))
