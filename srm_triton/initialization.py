"""Starting values that depend on data."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from srm_triton.checks import check_number
from srm_triton.layers import SRMLayer

SMALLEST_FACTOR, LARGEST_FACTOR = 0.05, 500.0


@torch.no_grad()
def calibrate_gain(
    model: nn.Module, inputs: Tensor, *, spikes_per_neuron: float = 1.0, tolerance: float = 0.01
) -> dict[str, float]:
    """Scales the normalisation gain of every spiking layer so that a fresh network neither dies nor saturates.

    Runs `inputs` through the model once. As the batch reaches a layer, its `norm_weight` is multiplied by the factor,
    found by bisection between 0.05 and 500, at which the mean firing rate over the last third of the steps is that of
    `spikes_per_neuron` spikes in the whole sequence; the layers behind it see the new output. As the published code of
    Zhu et al. (NeurIPS 2022) does, but only when called.

    Args:
        model: any module; its layers with a normalised weight are calibrated in the order in which they run.
        inputs: a first batch, as the model takes it.
        spikes_per_neuron: target number of spikes of a neuron in a sequence, > 0.
        tolerance: the bisection ends when the factor is known to this relative precision.

    Returns:
        The firing rate reached, in spikes per neuron and step, by the layer's name.

    Raises:
        TypeError: if `spikes_per_neuron` or `tolerance` is not a number.
        ValueError: if no layer has a normalisation, a layer runs twice or on empty inputs, or its rate cannot be
            reached within these gains. The gains are then as they were.

    Example:
        >>> from srm_triton import SRMLinear
        >>> rates = calibrate_gain(torch.nn.Sequential(SRMLinear(64, 128)), torch.rand(32, 8, 64))
        >>> 0.1 < rates["0"] < 0.15
        True
    """
    check_number("spikes_per_neuron", spikes_per_neuron, 0, above=True)
    check_number("tolerance", tolerance, 1e-6)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SRMLayer) and module.norm_weight is not None
    }
    if not layers:
        raise ValueError("model must contain a spiking layer with a normalised weight, such as SRMLinear or SRMConv2d")
    initial = {name: _gain(layer).clone() for name, layer in layers.items()}
    rates: dict[str, float] = {}

    def calibrate(name: str, layer: SRMLayer, layer_inputs: Tensor) -> None:
        if name in rates:
            raise ValueError(f"layer {name!r} runs twice in the model; one gain cannot suit both")
        if layer_inputs.numel() == 0:
            raise ValueError(f"inputs of layer {name!r} must not be empty, got the shape {list(layer_inputs.shape)}")
        time_axis = 1 if layer.batch_first else 0
        steps = layer_inputs.shape[time_axis]
        start = steps * 2 // 3

        def spikes_at(factor: float) -> float:
            _gain(layer).copy_(initial[name] * factor)
            late: Tensor = layer.forward(layer_inputs).narrow(time_axis, start, steps - start)
            rates[name] = float(late.float().mean())
            return rates[name] * steps

        low, high = SMALLEST_FACTOR, LARGEST_FACTOR
        fewest, most = spikes_at(low), spikes_at(high)
        if not fewest <= spikes_per_neuron <= most:
            raise ValueError(
                f"spikes_per_neuron must be within reach of layer {name!r}, {fewest:.3g} to {most:.3g} spikes in "
                f"{steps} steps at {low:g} to {high:g} times its gain, got {spikes_per_neuron}"
            )
        while high / low > 1 + tolerance:
            factor = math.sqrt(low * high)
            if spikes_at(factor) > spikes_per_neuron:
                high = factor
            else:
                low = factor

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, args, kwargs: calibrate(name, layer, args[0] if args else kwargs["inputs"])

    handles = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        model(inputs)
    except BaseException:
        for name, layer in layers.items():
            _gain(layer).copy_(initial[name])
        raise
    finally:
        for handle in handles:
            handle.remove()
    return rates


def _gain(layer: SRMLayer) -> Tensor:
    assert layer.norm_weight is not None
    return layer.norm_weight
