"""Starting values that depend on data."""

import math

import torch
from torch import Tensor, nn

from srm_triton.layers import SRMLayer


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
        model: any module; its `SRMLinear` and `SRMConv2d` with `weight_norm` are calibrated in the order in which they
            run.
        inputs: a first batch, as the model takes it.
        spikes_per_neuron: target number of spikes of a neuron in a sequence, > 0.
        tolerance: the bisection ends when the factor is known to this relative precision.

    Returns:
        The firing rate reached, in spikes per neuron and step, by the layer's name.

    Raises:
        ValueError: if no layer has a normalisation, or a layer stays silent at the largest gain.

    Example:
        >>> from srm_triton import SRMLinear
        >>> rates = calibrate_gain(torch.nn.Sequential(SRMLinear(64, 128)), torch.rand(32, 8, 64))
        >>> 0.1 < rates["0"] < 0.15
        True
    """
    if not spikes_per_neuron > 0:
        raise ValueError(f"spikes_per_neuron must be > 0, got {spikes_per_neuron}")
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SRMLayer) and module.norm_weight is not None
    }
    if not layers:
        raise ValueError("model must contain an SRMLinear or SRMConv2d with weight_norm=True")
    rates: dict[str, float] = {}

    def calibrate(name: str, layer: SRMLayer, layer_inputs: Tensor) -> None:
        def rate() -> float:
            spikes: Tensor = layer.forward(layer_inputs)
            time_axis = 1 if layer.batch_first else 0
            steps = spikes.shape[time_axis]
            start = steps * 2 // 3
            late = spikes.narrow(time_axis, start, steps - start)
            rates[name] = float(late.float().mean())
            return rates[name] * steps

        assert layer.norm_weight is not None
        initial = layer.norm_weight.clone()
        low, high = 0.05, 500.0
        layer.norm_weight.copy_(initial * high)
        if rate() == 0:
            layer.norm_weight.copy_(initial)
            raise ValueError(f"layer {name!r} stays silent at {high:g} times its gain: inputs do not drive it")
        while high / low > 1 + tolerance:
            factor = math.sqrt(low * high)
            layer.norm_weight.copy_(initial * factor)
            if rate() > spikes_per_neuron:
                high = factor
            else:
                low = factor

    handles = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: calibrate(name, layer, args[0]))
        for name, layer in layers.items()
    ]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return rates
