"""How many operations a network takes on data.

A connection works when the value that arrives is not 0 and its weight is not: it adds the weight, an accumulate, where
a layer receives spikes (−1, 0 or 1), or its product with the value, a multiply-accumulate, where it receives others.
That is the count of NeuroBench (Yik et al., "The NeuroBench framework for benchmarking neuromorphic computing
algorithms and systems", Nature Communications 2025), which also leaves out biases; pooling, which it does not count, is
an accumulate for each value in a window, as the division goes into the weights behind it.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srm_triton.affine import CONVOLUTIONS
from srm_triton.energy import LayerOperations, SynapticOperations
from srm_triton.layers import SRMAffine, SRMLayer
from srm_triton.neuron import SRMNeuron
from srm_triton.pooling import SpikeAvgPool2d
from srm_triton.readout import SRMReadout
from srm_triton.recurrent import SRMRecurrent
from srm_triton.resnet import _GlobalSpikeAvgPool2d

_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (SpikeAvgPool2d, nn.AvgPool2d, _GlobalSpikeAvgPool2d)


def synaptic_operations(model: nn.Module, data: Tensor | Iterable[Any]) -> SynapticOperations:
    """Counts the operations of a network on data, layer by layer; as text, a table with their energy beside.

    What counts is said in `srm_triton.operations`, what it takes in `srm_triton.energy`. The model runs in evaluation
    and without gradients, and is left as it was. An image that is shown at every step counts at every step; sums of
    branches of a network do not count.

    Args:
        model: layers of this package, `nn.Linear`, convolutions and average pooling in any arrangement.
        data: inputs as the model takes them, or batches of them, or of tuples that begin with them, as a `DataLoader`
            yields.

    Raises:
        TypeError: if `model` is no module, or inputs are no tensors.
        ValueError: for a model with parameters in other modules, whose operations are not known, or no data.

    Example:
        >>> from srm_triton import SRMLinear
        >>> spikes = torch.zeros(2, 10, 6)
        >>> spikes[0, :5, :3] = 1
        >>> operations = synaptic_operations(SRMLinear(6, 4), spikes)
        >>> operations.total.accumulates, operations.total.dense, operations.total.neuron_updates
        (30.0, 240.0, 40.0)
        >>> operations.energy()
        Energy(arithmetic=543.0, memory=2500.0)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    counters = _counters(model)
    batch_first = all(getattr(counter.module, "batch_first", True) for counter in counters)
    samples = 0
    with _watched(model, counters):
        for batch in [data] if isinstance(data, Tensor) else data:
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            if not isinstance(inputs, Tensor):
                raise TypeError(f"data must be tensors, or tuples that begin with one, got {type(inputs).__name__}")
            model(inputs)
            samples += inputs.shape[0 if batch_first else 1]
        if not samples:
            raise ValueError("data must hold at least one sample, got none")
        ran = sorted((counter for counter in counters if counter.order), key=lambda counter: counter.order)
        return SynapticOperations(tuple(counter.operations(samples) for counter in ran), samples)


def _counters(model: nn.Module) -> list["_Counter"]:
    """One for each module that has operations."""
    counters: list[_Counter] = []
    inner: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inner:
            continue
        if isinstance(module, (SRMLayer, SRMReadout, SRMNeuron, *_MAPS, *_POOLS)):
            counters.append(_Counter(name, module))
            inner.update(module.modules())
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(
                "model must have its parameters in layers of this package, nn.Linear and convolutions, "
                f"got {type(module).__name__} at {name!r}"
            )
    return counters


@contextlib.contextmanager
def _watched(model: nn.Module, counters: list["_Counter"]) -> Iterator[None]:
    """The model in evaluation, with the counters as hooks."""
    modes, order = [(module, module.training) for module in model.modules()], itertools.count(1)
    with contextlib.ExitStack() as stack, torch.no_grad():
        for counter in counters:
            hook = partial(counter.count, order)
            stack.callback(counter.module.register_forward_hook(hook, with_kwargs=True).remove)
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


class _Counter:
    """Counts how often each input of a module is not 0."""

    def __init__(self, name: str, module: Any) -> None:
        affine = module.affine if isinstance(module, SRMAffine) else module
        if not isinstance(affine, (*_MAPS, *_POOLS, SRMNeuron)):
            raise ValueError(f"model must have affine maps of torch.nn, got {type(affine).__name__} in {name!r}")
        self.name, self.module = name, module
        self.affine: Any = affine
        self.order = self.updates = self.calls = 0
        self.spiking = True
        self.active = self.own = torch.zeros((), dtype=torch.float64)

    def count(
        self, order: Iterator[int], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """A forward hook."""
        self.order = self.order or next(order)
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(module, SRMLayer | SRMReadout | SRMNeuron):
            self.updates += output.numel()
        if isinstance(module, SRMNeuron):
            return
        inputs: Tensor = args[0] if args else kwargs["inputs"]
        axes = (
            1
            if isinstance(self.affine, nn.Linear)
            else 3
            if isinstance(self.affine, _POOLS)
            else self.affine.weight.dim() - 1
        )
        values = inputs.reshape(-1, *inputs.shape[-axes:])
        values = values if values.is_floating_point() else values.float()
        self.calls += len(values)
        self.spiking &= bool(((values == 0) | (values.abs() == 1)).all())
        self.active = _active(values) + self.active.to(values.device)
        if isinstance(module, SRMRecurrent):
            axis = 1 if module.batch_first else 0
            before = output.narrow(axis, 0, output.shape[axis] - 1).flatten(0, 1)
            state = args[1] if len(args) > 1 else kwargs.get("state")
            first = output.new_zeros(1, output.shape[-1]) if state is None else state.spikes
            self.own = _active(before) + _active(first) + self.own.to(values.device)

    def operations(self, samples: int) -> LayerOperations:
        """What was counted, for a sample."""
        effective = own = dense = 0.0
        every = torch.full_like(self.active, self.calls)
        pools = isinstance(self.affine, _POOLS)
        if pools:
            effective, dense = self._pooled(self.active), self._pooled(every)
        elif not isinstance(self.module, SRMNeuron):
            weight: Tensor = self.affine.weight  # what is pruned is 0 behind the normalisation too
            effective, dense = self._mapped(self.active, weight != 0), self._mapped(every, torch.ones_like(weight))
        if isinstance(self.module, SRMRecurrent):
            weight = self.module.recurrent_weight
            own = float((self.own @ (weight != 0).to(torch.float64).t()).sum())
            dense += self.calls * weight.numel()
        values, spikes = (0.0, effective) if self.spiking or pools else (effective, 0.0)
        counts = values, spikes + own, dense, float(self.updates)
        return LayerOperations(self.name, type(self.module).__name__, *(count / samples for count in counts))

    def _mapped(self, values: Tensor, weight: Tensor) -> float:
        """How often the connections of a weight that are True, or 1, see the values."""
        weight, layer = weight.to(torch.float64), self.affine
        if isinstance(layer, nn.Linear):
            return float((values @ weight.t()).sum())
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = F.pad(values[None], layer._reversed_padding_repeated_twice, mode)
        convolve = CONVOLUTIONS[weight.dim() - 2]
        return float(convolve(padded, weight, None, layer.stride, 0, layer.dilation, layer.groups).sum())

    def _pooled(self, values: Tensor) -> float:
        """How often the windows see the values."""
        pool = self.affine
        if not hasattr(pool, "kernel_size"):  # one window
            return float(values.sum())
        ceil = getattr(pool, "ceil_mode", False)
        sums = F.avg_pool2d(values[None], pool.kernel_size, pool.stride, pool.padding, ceil, divisor_override=1)
        return float(sums.sum())


def _active(values: Tensor) -> Tensor:
    return (values != 0).sum(0, dtype=torch.float64)
