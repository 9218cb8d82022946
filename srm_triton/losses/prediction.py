"""From output spikes to a class."""

import torch
from torch import Tensor

from srm_triton.checks import check_tensor, time_axes


def predict(spikes: Tensor, *, batch_first: bool = True) -> Tensor:
    """The class whose output neuron fires most; of equal counts, the one that fires earlier.

    Spikes at step t = 0 … T−1 count 1.1 − t/(10·T), the weights of the published readout: below 40 steps they decide
    between equal counts only.

    Args:
        spikes: output spikes, [batch, time, classes].
        batch_first: False for [time, batch, classes].

    Returns:
        Classes, int64 [batch]; the lowest of those that still tie.

    Raises:
        TypeError: if `spikes` is not a floating-point tensor.
        ValueError: if it has another rank, or no steps or classes.

    Example:
        >>> predict(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
        tensor([1])
    """
    fired = _fired(spikes, batch_first)
    steps = fired.shape[1]
    # the weights times 10·T are whole numbers, so that equal counts at equal times tie exactly
    weights = torch.arange(11 * steps, 10 * steps, -1, device=spikes.device)
    return (fired * weights[:, None]).sum(1).argmax(1)


def predict_first_spike(spikes: Tensor, *, batch_first: bool = True) -> Tensor:
    """The class whose output neuron fires first; of equal first spikes, the one whose next spike is earlier, and so on.

    This is the published readout Σ spike[t]·2^(−t), exact for any number of steps. Use it with
    `first_spike_cross_entropy`.

    Args:
        spikes: output spikes, [batch, time, classes].
        batch_first: False for [time, batch, classes].

    Returns:
        Classes, int64 [batch]; the lowest of those that still tie.

    Raises:
        TypeError: if `spikes` is not a floating-point tensor.
        ValueError: if it has another rank, or no steps or classes.

    Example:
        >>> predict_first_spike(torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]]))
        tensor([1])
    """
    fired = _fired(spikes, batch_first)
    left = torch.ones_like(fired[:, 0])
    for step in fired.unbind(1):
        firing = left & step
        left = torch.where(firing.any(1, keepdim=True), firing, left)
    return left.byte().argmax(1)


def _fired(spikes: Tensor, batch_first: bool) -> Tensor:
    check_tensor("spikes", spikes, time_axes(batch_first, "classes"))
    fired = (spikes if batch_first else spikes.transpose(0, 1)) != 0
    if 0 in fired.shape[1:]:
        raise ValueError(f"spikes must have at least one step and one class, got {list(spikes.shape)}")
    return fired
