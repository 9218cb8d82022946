"""From values, such as pixels, to inputs over time: the value itself, random spikes, or the time of one spike."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from srm_triton.checks import check_entries, check_number, check_option, check_tensor

Spacing = Literal["linear", "logarithmic"]


def encode_direct(values: Tensor, steps: int) -> Tensor:
    """Direct encoding: the value is the constant input of every step.

    Args:
        values: [batch, ...].
        steps: number of time steps, ≥ 1.

    Returns:
        [batch, time, ...], a view of `values`, of which the first layer computes its current once for all steps.

    Raises:
        TypeError: if `values` is not a tensor or `steps` not an int.
        ValueError: if `values` has no axis or `steps` is below 1.

    Example:
        >>> encode_direct(torch.rand(2, 8, 8), steps=5).shape
        torch.Size([2, 5, 8, 8])
    """
    steps = check_number("steps", steps, 1, whole=True)
    if not isinstance(values, Tensor):
        raise TypeError(f"values must be a torch.Tensor, got {type(values).__name__}")
    if not values.dim():
        raise ValueError("values must have the shape [batch, ...], got []")
    return values[:, None].expand(-1, steps, *values.shape[1:])


def encode_rate(values: Tensor, steps: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Rate encoding: at every step a spike with the probability that the value is, independently (Bernoulli).

    The spikes pass no gradient to the values.

    Args:
        values: probabilities, [batch, ...], 0 … 1.
        steps: number of time steps, ≥ 1.
        generator: of the random numbers, on the device of `values`; None for PyTorch's own.

    Returns:
        Spikes, [batch, time, ...], in the dtype of `values`.

    Raises:
        TypeError: if `values` is not a floating-point tensor or `steps` not an int.
        ValueError: for values outside of 0 … 1 or NaN, or `steps` below 1.

    Example:
        >>> encode_rate(torch.tensor([[0.0, 1.0]]), steps=3)
        tensor([[[0., 1.],
                 [0., 1.],
                 [0., 1.]]])
    """
    _check_values(values)
    return torch.bernoulli(encode_direct(values.detach(), steps), generator=generator)


def encode_latency(values: Tensor, steps: int, *, spacing: Spacing = "linear", smallest: float = 0.01) -> Tensor:
    """Latency encoding: one spike for each value, earlier for a larger one, at step 0 for 1.

    The spike is at the step nearest to (T − 1)·(1 − value), or with logarithmic spacing, where equal ratios of values
    are equal delays, to (T − 1)·log(value)/log(smallest), but not after step T − 1. It passes no gradient.

    Args:
        values: [batch, ...], 0 … 1.
        steps: number of time steps T, ≥ 1.
        spacing: ``"linear"`` or ``"logarithmic"``.
        smallest: with logarithmic spacing, the value that fires at the last step, as all below it do; between 0 and 1.

    Returns:
        Spikes, [batch, time, ...], in the dtype of `values`; values of 0 fire at the last step too. Multiply by
        ``(values > 0)[:, None]`` where they should not.

    Raises:
        TypeError: if `values` is not a floating-point tensor or `steps` not an int.
        ValueError: for values outside of 0 … 1 or NaN, `steps` below 1, or another option.

    Example:
        >>> encode_latency(torch.tensor([[1.0, 0.5, 0.0]]), steps=3)
        tensor([[[1., 0., 0.],
                 [0., 1., 0.],
                 [0., 0., 1.]]])
        >>> encode_latency(torch.tensor([[1.0, 0.1, 0.01]]), steps=3, spacing="logarithmic").argmax(1)
        tensor([[0, 1, 2]])
    """
    steps = check_number("steps", steps, 1, whole=True)
    _check_values(values)
    check_option("spacing", spacing, get_args(Spacing))
    smallest = check_number("smallest", smallest, 0, above=True)
    if smallest >= 1:
        raise ValueError(f"smallest must be < 1, got {smallest}")
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    late = 1 - exact if spacing == "linear" else (exact.log() / math.log(smallest)).clamp(max=1)
    times = (late * (steps - 1)).round()
    step = torch.arange(steps, device=values.device).view(-1, *[1] * (values.dim() - 1))
    return (times[:, None] == step).to(values.dtype)


def _check_values(values: Any) -> None:
    check_tensor("values", values, "[batch, ...]")
    check_entries("values", values, (values >= 0) & (values <= 1), "lie in 0 … 1")
