"""Starting values that depend on data, and time constants that suit a sequence's length."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from srm_triton.checks import check_number, check_sizes
from srm_triton.layers import SRMAffine, SRMLayer, spiking_layers
from srm_triton.neuron import SRMNeuron
from srm_triton.parameters import SRMParameters

STEPS_PER_SPIKE = 8
LARGEST_FACTOR = 2.0**60
WORTH_A_LARGER_FACTOR = 0.95
"""Of the highest rate within reach; what lies above costs large weights for few spikes."""


def time_constants(steps: int, channels: int, *, shortest: float = 2.0, **constants: Any) -> SRMParameters:
    """Constants of a layer whose neurons remember over different times, for sequences of a given length.

    The membrane time constants rise from `shortest` to half the sequence, 8 at least, in equal ratios, so that some
    neurons follow each step and others still know of the beginning; the synaptic ones are 0.6 of them, as 3 to 5 in the
    published networks, and those of the gradient trace the same as the membrane's.

    Args:
        steps: length of the sequences, ≥ 1.
        channels: number of neurons or channels of the layer, ≥ 1.
        shortest: the shortest membrane time constant in steps, > 1.
        **constants: the other constants, and what replaces those above, as `SRMParameters` takes them.

    Raises:
        TypeError: for another type.
        ValueError: for a value out of range.

    Example:
        >>> time_constants(steps=64, channels=5).tau_m
        tensor([ 2.,  4.,  8., 16., 32.], dtype=torch.float64)
    """
    steps = check_number("steps", steps, 1, whole=True)
    channels = check_number("channels", channels, 1, whole=True)
    shortest = check_number("shortest", shortest, 1, above=True)
    longest = max(longest_time_constant(steps), shortest)
    share = torch.linspace(0, 1, channels, dtype=torch.float64, device="cpu")  # whatever the default
    tau_m = shortest * (longest / shortest) ** share
    return SRMParameters(**{"tau_m": tau_m, "tau_s": (0.6 * tau_m).clamp(min=1), "tau_g": tau_m, **constants})


def longest_time_constant(steps: int) -> float:
    """Half of the sequence; 8 steps for shorter ones, in which neurons that forget less take longer to fire."""
    return max(steps / 2, 8.0)


@torch.no_grad()
def calibrate_gain(
    model: nn.Module,
    inputs: Any,
    *,
    spikes_per_neuron: float | None = None,
    window: tuple[int, int] | None = None,
    tolerance: float = 0.01,
) -> dict[str, float]:
    """Scales the current of every spiking layer so that a fresh network neither dies nor saturates.

    Runs `inputs` through the model once. As the batch reaches a layer, the factor on its current is sought at which its
    neurons fire at the wanted rate, and multiplied into its gain and bias, or without normalisation into its weight and
    bias; the layers behind it see the new output. Of a recurrent layer only what the inputs cause is scaled. Where the
    current is not proportional to parameters of the layer itself, as that of an `SRMNeuron` behind an ordinary layer,
    the threshold is divided instead. A layer that cannot reach the rate comes as near as it can, with a warning.
    Source: the published code of Zhu et al. (NeurIPS 2022 and 2023), which does likewise for the last third of the
    steps, or for all.

    Args:
        model: any module; its layers are calibrated in the order in which they run.
        inputs: a first batch, as the model takes it; a batch of inputs and labels, or the `DataLoader`, will do.
        spikes_per_neuron: wanted number of spikes of a neuron in the window, > 0; None for one in 8 steps.
        window: the steps that count, from the first to the one behind the last; None for the whole sequence.
        tolerance: the search ends when the factor is known to this relative precision.

    Returns:
        The firing rate reached in the window, in spikes per neuron and step, by the layer's name.

    Raises:
        TypeError: if `inputs`, `spikes_per_neuron`, `window` or `tolerance` is of another type.
        ValueError: if there is no spiking layer, a layer runs twice or on empty inputs, its current is not finite, or
            the window is empty. The model is then as it was.

    Example:
        >>> from srm_triton import SRMLinear
        >>> rates = calibrate_gain(torch.nn.Sequential(SRMLinear(64, 128)), torch.rand(32, 8, 64))
        >>> 0.1 < rates["0"] < 0.15
        True
    """
    if spikes_per_neuron is not None:
        spikes_per_neuron = check_number("spikes_per_neuron", spikes_per_neuron, 0, above=True)
    tolerance = check_number("tolerance", tolerance, 1e-6)
    if window is not None:
        first, last = check_sizes("window", window, 0, ("first step", "step behind the last"))
        if first >= last:
            raise ValueError(f"window must end behind the step that it begins with, got {window}")
        window = first, last
    layers = spiking_layers(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rates: dict[str, float] = {}

    def calibrate(name: str, layer: SRMLayer | SRMNeuron, layer_inputs: Tensor) -> None:
        if name in rates:
            raise ValueError(f"layer {name!r} runs twice in the model; one gain cannot suit both")
        if layer_inputs.numel() == 0:
            raise ValueError(f"inputs of layer {name!r} must not be empty, got the shape {list(layer_inputs.shape)}")
        steps = layer_inputs.shape[1 if layer.batch_first else 0]
        start, stop = (0, steps) if window is None else window
        if stop > steps:
            raise ValueError(f"window must end at step {steps} of layer {name!r} or before, got {window}")
        wanted = (stop - start) / STEPS_PER_SPIKE if spikes_per_neuron is None else spikes_per_neuron
        rates[name] = _Calibration(name, layer, layer_inputs, slice(start, stop)).reach(
            wanted / (stop - start), tolerance
        )

    def hook(name: str) -> Callable[..., None]:
        def calibrate_first(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calibrate(name, layer, args[0] if args else kwargs["inputs" if isinstance(layer, SRMLayer) else "current"])

        return calibrate_first

    handles = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers]
    try:
        model(_first_batch(inputs))
    except BaseException:
        model.load_state_dict(before)
        raise
    finally:
        for handle in handles:
            handle.remove()
    return rates


def _first_batch(inputs: Any) -> Any:
    if isinstance(inputs, DataLoader):
        inputs = next(iter(inputs))
    if isinstance(inputs, (tuple, list)) and inputs:
        inputs = inputs[0]
    if not isinstance(inputs, Tensor):
        raise TypeError(
            "inputs must be a tensor, a batch of inputs and labels, or a DataLoader of such batches, "
            f"got {type(inputs).__name__}"
        )
    return inputs


class _Calibration:
    """The search for the factor on the current of one layer."""

    def __init__(self, name: str, layer: SRMLayer | SRMNeuron, inputs: Tensor, window: slice) -> None:
        self.name, self.layer, self.inputs, self.window = name, layer, inputs, window
        self.current = (inputs if isinstance(layer, SRMNeuron) else layer.current(inputs)).detach()
        if not self.current.isfinite().all():
            raise ValueError(f"the current of layer {name!r} must be finite, got {_first_bad(self.current)}")

    def rate(self, factor: float) -> float:
        """Spikes per neuron and step in the window, of a current that is multiplied."""
        time_axis = 1 if self.layer.batch_first else 0
        fire = self.layer.forward if isinstance(self.layer, SRMNeuron) else self.layer.fire  # without hooks
        spikes: Tensor = fire(self.current * factor)
        return float(spikes.movedim(time_axis, 0)[self.window].mean(dtype=torch.float64))

    def reach(self, wanted: float, tolerance: float) -> float:
        """Scales the layer by the factor whose rate is nearest to the wanted one; returns that rate."""
        tried = {1.0: self.rate(1.0)}
        for step in (4.0, 0.25):  # upwards while it fires too little, downwards while too much
            factor = 1.0
            while (tried[factor] < wanted) == (step > 1) and 1 / LARGEST_FACTOR < factor < LARGEST_FACTOR:
                factor *= step
                tried[factor] = self.rate(factor)
        above = [factor for factor, rate in tried.items() if rate >= wanted]
        if above:
            high = min(above)
            low = max((factor for factor in tried if factor < high), default=high)
            while high / low > 1 + tolerance:
                factor = math.sqrt(low * high)
                tried[factor] = self.rate(factor)
                low, high = (factor, high) if tried[factor] < wanted else (low, factor)
            best = min(tried, key=lambda factor: abs(tried[factor] - wanted))
        else:
            highest = max(tried.values())
            best = min(
                tried, key=lambda factor: (tried[factor] < WORTH_A_LARGER_FACTOR * highest, abs(math.log(factor)))
            )
        self._scale(best)
        if abs(tried[best] - wanted) > 0.2 * wanted:
            self._warn(tried[best], wanted, max(tried.values()))
        return tried[best]

    def _scale(self, factor: float) -> None:
        layer = self.layer
        parameters = [] if isinstance(layer, SRMNeuron) else self._proportional(layer)
        for parameter in parameters:
            parameter.mul_(factor)
        if not parameters:
            neuron = layer if isinstance(layer, SRMNeuron) else layer.neuron
            neuron.threshold = neuron.threshold / factor

    def _proportional(self, layer: SRMLayer) -> list[Tensor]:
        """The parameters that the current is proportional to; none if there are no such."""
        if layer.norm_weight is not None:
            named = (getattr(layer, name, None) for name in ("norm_weight", "norm_bias", "bias"))
            return [value for value in named if value is not None]
        owners = list(layer.affine.modules()) if isinstance(layer, SRMAffine) else [layer]
        last = next((own for own in map(_own_parameters, reversed(owners)) if own), [])
        for parameter in last:
            parameter.mul_(2)
        proportional = torch.allclose(layer.current(self.inputs).to(self.current), 2 * self.current, 1e-2, 1e-6)
        for parameter in last:
            parameter.div_(2)
        return last if proportional else []

    def _warn(self, rate: float, wanted: float, highest: float) -> None:
        if not self.inputs.any():
            reason = "its inputs are all 0; let the layer before it fire more, or give it other inputs"
        elif highest == 0:
            reason = "it stays silent at any gain, as its inputs excite no neuron; give it a bias, or other inputs"
        elif highest < wanted:
            reason = (
                "its neurons cannot fire more often; ask for fewer spikes_per_neuron, or choose shorter time "
                "constants, with which spikes pass sooner"
            )
        else:
            reason = "its rate changes in steps; calibrate with a larger batch of more different samples"
        warnings.warn(
            f"layer {self.name!r} fires {rate:.3g} times a neuron and step instead of {wanted:.3g}: {reason}",
            stacklevel=2,
        )


def _own_parameters(module: nn.Module) -> list[Tensor]:
    named = module.named_parameters(recurse=False)
    return [value for name, value in named if not name.startswith("recurrent_")]


def _first_bad(values: Tensor) -> float:
    return float(values[~values.isfinite()][0])
