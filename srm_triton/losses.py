"""From output spikes to a loss and a prediction. Losses act on spikes or counts as they are.

Any ordinary loss does: `F.cross_entropy(spikes.sum(1), labels)`, an `nn.Linear` behind `spikes.mean(1)`. With the event
rule the layer that a loss looks at should be made with ``output=True``, since a silent neuron receives no gradient.
"""

import math

import torch
from torch import Tensor

from srm_triton.checks import check_labels, check_tensor, mark_labels, time_axes


def spike_counts(spikes: Tensor, *, batch_first: bool = True) -> Tensor:
    """The number of spikes of each output neuron, ready for any ordinary loss, such as cross-entropy.

    Args:
        spikes: output spikes, [batch, time, classes].
        batch_first: False for [time, batch, classes].

    Returns:
        Counts, [batch, classes], in the dtype of `spikes`.

    Raises:
        TypeError: if `spikes` is not a floating-point tensor.
        ValueError: if it has another rank.

    Example:
        >>> spike_counts(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
        tensor([[2., 1.]])
    """
    check_tensor("spikes", spikes, time_axes(batch_first, "classes"))
    return spikes.sum(1 if batch_first else 0)


def count_loss(spikes: Tensor, labels: Tensor, *, desired: float, undesired: float, batch_first: bool = True) -> Tensor:
    """The count loss: the labelled neuron should fire at least `desired` times, every other at most `undesired` times.

    With n spikes of a neuron in T steps and d = max(desired − n, 0) for the labelled neuron, d = max(n − undesired, 0)
    for the others, the loss is the sum of ½·T·(d/T)² over the neurons, averaged over the batch: half the square of the
    distance in units of T, for each step. There is no penalty beyond the targets. Source: the code of Zhu et al.,
    NeurIPS 2022, which sums over the batch.

    Args:
        spikes: output spikes, [batch, time, classes].
        labels: the class of each sample, int64 [batch].
        desired: spikes wanted of the labelled neuron, more than `undesired`, at most T.
        undesired: spikes allowed to each other neuron, ≥ 0.
        batch_first: False for [time, batch, classes].

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: if `spikes` is not a floating-point tensor or `labels` not an int64 tensor.
        ValueError: for shapes that do not fit, an empty batch, or labels or counts out of range.

    Example:
        >>> spikes = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]], requires_grad=True)
        >>> loss = count_loss(spikes, torch.tensor([0]), desired=2, undesired=1)
        >>> loss.item()  # both neurons are one spike from their targets
        0.5
        >>> loss.backward()
        >>> spikes.grad.tolist()  # the labelled neuron should fire more, the other less
        [[[-0.5, 0.5], [-0.5, 0.5]]]
    """
    counts = spike_counts(spikes, batch_first=batch_first)
    counts = counts.to(torch.promote_types(counts.dtype, torch.float32))  # squares overflow in half precision
    batch, classes = counts.shape
    steps = spikes.shape[1 if batch_first else 0]
    check_labels(labels, "spikes", spikes, batch, classes)
    if batch == 0:
        raise ValueError("spikes must hold at least one sample, got an empty batch")
    if not (math.isfinite(undesired) and 0 <= undesired < desired <= steps):
        raise ValueError(
            f"desired and undesired must satisfy 0 ≤ undesired < desired ≤ {steps} (the number of steps), "
            f"got desired={desired} and undesired={undesired}"
        )
    distance = torch.where(mark_labels(labels, classes), desired - counts, counts - undesired).clamp(min=0)
    return distance.square().sum() / (2 * steps * batch)


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
    check_tensor("spikes", spikes, time_axes(batch_first, "classes"))
    time_axis = 1 if batch_first else 0
    steps = spikes.shape[time_axis]
    if steps == 0 or spikes.shape[2] == 0:
        raise ValueError(f"spikes must have at least one step and one class, got {list(spikes.shape)}")
    # the weights times 10·T are whole numbers, so that equal counts at equal times tie exactly
    weights = torch.arange(11 * steps, 10 * steps, -1, device=spikes.device)
    weighted = (spikes.movedim(time_axis, 1) != 0) * weights[:, None]
    return weighted.sum(1).argmax(1)
