"""Losses on the number of spikes of each output neuron."""

from typing import Any

import torch
from torch import Tensor

from srm_triton.checks import check_number, check_option, mark_labels
from srm_triton.losses.arguments import as_trains, check_spikes, cross_entropy, prepare


def spike_counts(spikes: Tensor, *, batch_first: bool = True) -> Tensor:
    """The number of spikes of each output neuron, ready for any ordinary loss, such as cross-entropy.

    Args:
        spikes: output spikes, [batch, time, classes].
        batch_first: False for [time, batch, classes].

    Returns:
        Counts, [batch, classes], in float64 for float64, else in float32, as half precision does not hold them all.

    Raises:
        TypeError: if `spikes` is not a floating-point tensor.
        ValueError: if it has another rank, or for another option.

    Example:
        >>> spike_counts(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
        tensor([[2., 1.]])
    """
    return as_trains(spikes, batch_first).sum(1)


def count_loss(spikes: Tensor, labels: Tensor, *, desired: float, undesired: float, batch_first: bool = True) -> Tensor:
    """The count loss: the labelled neuron should fire at least `desired` times, every other at most `undesired` times.

    With n spikes of a neuron in T steps and d = max(desired − n, 0) for the labelled neuron, d = max(n − undesired, 0)
    for the others, the loss is the sum of ½·T·(d/T)² over the neurons, averaged over the batch: half the square of the
    distance in units of T, for each step. There is no penalty beyond the targets. Each step receives −d/T (labelled) or
    d/T, divided by the batch. Source: the code of Zhu et al., NeurIPS 2022, which sums over the batch.

    Choose it when the number of spikes should be low, or known.

    Args:
        spikes: output spikes, [batch, time, classes].
        labels: the class of each sample, integers [batch].
        desired: spikes wanted of the labelled neuron, more than `undesired`, at most T.
        undesired: spikes allowed to each other neuron, ≥ 0.
        batch_first: False for [time, batch, classes].

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: if `spikes` is not a floating-point tensor, `labels` not one of integers, or a count no number.
        ValueError: for values that are no spikes, shapes that do not fit, an empty axis, labels or counts out of range,
            or another option.

    Example:
        >>> spikes = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]], requires_grad=True)
        >>> loss = count_loss(spikes, torch.tensor([0]), desired=2, undesired=1)
        >>> loss.item()  # both neurons are one spike from their targets
        0.5
        >>> loss.backward()
        >>> spikes.grad.tolist()  # the labelled neuron should fire more, the other less
        [[[-0.5, 0.5], [-0.5, 0.5]]]
    """
    counts, labels, steps = _counts(spikes, labels, batch_first)
    desired, undesired = _check_targets(desired, undesired, steps)
    labelled = mark_labels(labels, counts.shape[1])
    return _half_square(counts, labelled, desired, undesired, steps).sum() / len(counts)


def enhanced_count_loss(
    spikes: Tensor, labels: Tensor, *, desired: float, undesired: float, batch_first: bool = True
) -> Tensor:
    """The enhanced count loss ("count+"): `count_loss`, each neuron's share divided by its number of spikes.

    So a neuron's spikes receive ±d/T together, however many they are, and few spikes are not drowned by many. Where
    outputs fire too much, the labelled neurons' share is multiplied by max(ratio/10, 1), with the ratio of all other
    counts to all labelled counts in the batch, each count taken no better than its target. These weights are constants
    in the backward, so that every gradient has the sign that it has in `count_loss`. A silent neuron counts as firing
    once. Source: the code of Zhu et al., NeurIPS 2023, where a spike is added to labelled neurons instead, and which
    sums over the batch and shows the loss without the weights.

    Choose it when `count_loss` learns slowly, or outputs fire at very different rates.

    Args:
        spikes: output spikes, [batch, time, classes].
        labels: the class of each sample, integers [batch].
        desired: spikes wanted of the labelled neuron, more than `undesired`, at most T.
        undesired: spikes allowed to each other neuron, ≥ 0.
        batch_first: False for [time, batch, classes].

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: as `count_loss`.
        ValueError: as `count_loss`.

    Example:
        >>> spikes = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]], requires_grad=True)
        >>> enhanced_count_loss(spikes, torch.tensor([0]), desired=2, undesired=1).backward()
        >>> spikes.grad.tolist()  # two spikes share what the one spike receives
        [[[-0.5, 0.25], [-0.5, 0.25]]]
    """
    counts, labels, steps = _counts(spikes, labels, batch_first)
    desired, undesired = _check_targets(desired, undesired, steps)
    labelled = mark_labels(labels, counts.shape[1])
    half_square = _half_square(counts, labelled, desired, undesired, steps)
    fired = counts.detach().clamp(min=1)
    others = counts.detach().clamp(min=undesired).masked_fill(labelled, 0).sum()
    ratio = others / fired.clamp(max=desired).masked_fill(~labelled, 0).sum()
    weights = torch.where(labelled, (ratio / 10).clamp(min=1), 1.0) / fired
    return (weights * half_square).sum() / len(counts)


def rate_cross_entropy(
    spikes: Tensor, labels: Tensor, *, silent: float = -20.0, skip_silent: bool = False, batch_first: bool = True
) -> Tensor:
    """Cross-entropy of firing rates ("CE+"), each neuron's share divided by its number of spikes.

    With n spikes of a neuron in T steps and the softmax p of 2·n/T, or `silent` where n = 0, the loss is
    T/2·(−log p[label]), averaged over the batch. The derivative with respect to 2·n/T goes to the neuron's spikes in
    equal shares: each step receives T/2·(p − 1)/n (labelled) or T/2·p/n, divided by the batch. A silent labelled neuron
    counts as firing once, other silent neurons receive 0. So descent raises the labelled rate and lowers the others, as
    for cross-entropy, but few spikes are not drowned by many. Source: the code of Zhu et al., NeurIPS 2023, where a
    spike is added to labelled neurons.

    Choose it when counts differ much between samples, or sequences are long: a logit is at most 2, whatever T is.

    Args:
        spikes: output spikes, [batch, time, classes].
        labels: the class of each sample, integers [batch].
        silent: logit of a silent neuron; with the surrogate gradient −2 does better than the published −20.
        skip_silent: True for the published rule that samples whose labelled neuron is silent hand on no gradient. There
            that is rare, as a spike is added; here such neurons would never learn to fire.
        batch_first: False for [time, batch, classes].

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: as `count_loss`.
        ValueError: as `count_loss`.

    Example:
        >>> spikes = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]], requires_grad=True)
        >>> rate_cross_entropy(spikes, torch.tensor([0]))
        tensor(1.3133, grad_fn=<MulBackward0>)
    """
    silent = check_number("silent", silent, -1e6)
    check_option("skip_silent", skip_silent, (False, True))
    counts, labels, steps = _counts(spikes, labels, batch_first)
    labelled, fixed = mark_labels(labels, counts.shape[1]), counts.detach()
    values = torch.where(fixed > 0, fixed * (2 / steps), silent)
    share = torch.where(labelled | (fixed > 0), counts / fixed.clamp(min=1), 0)
    if skip_silent:
        share = share * (fixed.gather(1, labels[:, None]) > 0)
    return cross_entropy(values + (share - share.detach()), labels) * (steps / 2)


def _counts(spikes: Tensor, labels: Tensor, batch_first: bool) -> tuple[Tensor, Tensor, int]:
    """Counts, labels and the number of steps."""
    spikes, labels = prepare(spikes, labels, batch_first)
    check_spikes(spikes, shares=True)
    return spikes.sum(1), labels, spikes.shape[1]


def _check_targets(desired: Any, undesired: Any, steps: int) -> tuple[float, float]:
    desired, undesired = check_number("desired", desired, 0), check_number("undesired", undesired, 0)
    if not undesired < desired <= steps:
        raise ValueError(
            f"desired and undesired must satisfy 0 ≤ undesired < desired ≤ {steps} (the number of steps), "
            f"got desired={desired} and undesired={undesired}"
        )
    return desired, undesired


def _half_square(counts: Tensor, labelled: Tensor, desired: float, undesired: float, steps: int) -> Tensor:
    """½·T·(d/T)² of each neuron, [batch, classes]."""
    distance = torch.where(labelled, desired - counts, counts - undesired).clamp(min=0)
    return distance.square() / (2 * steps)
