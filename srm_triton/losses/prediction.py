"""From output spikes to a class."""

import torch
from torch import Tensor

from srm_triton.losses.arguments import as_trains, check_spikes


def predict(spikes: Tensor, *, batch_first: bool = True) -> Tensor:
    """The class whose output neuron fires most; of equal counts, the one that fires earlier.

    Spikes at step t = 0 … T−1 count 1.1 − t/(10·T), the weights of the published readout: below 40 steps they decide
    between equal counts only. Membrane potentials of an `SRMReadout` are no spikes; they name a class by
    ``potentials.mean(1).argmax(1)``. On a GPU, where it would wait, nobody looks whether values are spikes.

    Args:
        spikes: output spikes, or their means over the neurons of each class, [batch, time, classes].
        batch_first: False for [time, batch, classes].

    Returns:
        Classes, int64 [batch]; the lowest of those that still tie.

    Raises:
        TypeError: if `spikes` is not a floating-point tensor.
        ValueError: if it has another rank, no steps or classes, values that are no spikes, or for another option.

    Example:
        >>> predict(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
        tensor([1])
    """
    spikes = _spikes(spikes, batch_first, shares=True)
    steps = spikes.shape[1]
    # the weights times 10·T are whole numbers, so that equal counts at equal times tie exactly
    weights = torch.arange(11 * steps, 10 * steps, -1, device=spikes.device)
    return (spikes.double() * weights[:, None]).sum(1).argmax(1)


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
        ValueError: as `predict`.

    Example:
        >>> predict_first_spike(torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]]))
        tensor([1])
    """
    fired = _spikes(spikes, batch_first, shares=False) != 0
    left = torch.ones_like(fired[:, 0])
    for step in fired.unbind(1):
        firing = left & step
        left = torch.where(firing.any(1, keepdim=True), firing, left)
    return left.byte().argmax(1)


def _spikes(outputs: Tensor, batch_first: bool, *, shares: bool) -> Tensor:
    trains = as_trains(outputs, batch_first)
    if 0 in trains.shape[1:]:
        raise ValueError(f"spikes must have at least one step and one class, got {list(outputs.shape)}")
    check_spikes(trains, shares=shares)
    return trains
