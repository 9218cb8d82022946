"""From output spikes to a loss and a prediction: the readout, which turns the gradient round, and what follows it.

Spiking layers pass on ∂L/∂(spike time); a loss on spikes gives ∂L/∂(spike), of opposite sign. `spike_counts` and
`count_loss` are readouts: they reverse the sign themselves, so they take the output layer's spikes as they are, and any
ordinary loss may follow `spike_counts`. `reverse_gradient` is for readouts of one's own; both refuse what it returns.
"""

import math
from typing import Any

import torch
from torch import Tensor

from srm_triton.checks import check_labels, check_tensor, mark_labels, time_axes
from srm_triton.functions import Function


class _ReverseGradient(Function):
    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        return inputs.view_as(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


def reverse_gradient(spikes: Tensor) -> Tensor:
    """The readout: returns the spikes unchanged and reverses the sign of their gradient.

    Spiking layers pass on ∂L/∂(spike time). A loss on spike counts or rates gives ∂L/∂(spike), and the two have
    opposite signs: the earlier a spike, the stronger it is. So every network ends with this, or with `spike_counts` or
    `count_loss`, which contain it, and ordinary losses follow.

    Args:
        spikes: output spikes, any shape.

    Example:
        >>> spikes = torch.ones(2, requires_grad=True)
        >>> reverse_gradient(spikes).sum().backward()
        >>> spikes.grad
        tensor([-1., -1.])
    """
    reversed_spikes: Tensor = _ReverseGradient.apply(spikes)
    return reversed_spikes


def spike_counts(spikes: Tensor, *, batch_first: bool = True) -> Tensor:
    """A readout: the number of spikes of each output neuron, ready for any ordinary loss, such as cross-entropy.

    It reverses the gradient's sign (see `reverse_gradient`); pass the output layer's spikes as they are.

    Args:
        spikes: output spikes, [batch, time, classes].
        batch_first: False for [time, batch, classes].

    Returns:
        Counts, [batch, classes], in the dtype of `spikes`.

    Raises:
        TypeError: if `spikes` is not a floating-point tensor.
        ValueError: if it has another rank, or comes from `reverse_gradient`, which would turn the sign back.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]], requires_grad=True)
        >>> counts = spike_counts(spikes)
        >>> counts.tolist()
        [[2.0, 1.0]]
        >>> counts[0, 0].backward()
        >>> spikes.grad[0, :, 0].tolist()
        [-1.0, -1.0]
    """
    check_tensor("spikes", spikes, time_axes(batch_first, "classes"))
    if not torch.compiler.is_compiling() and type(spikes.grad_fn).__name__ == "_ReverseGradientBackward":
        raise ValueError("spikes must come straight from the output layer: their gradient is reversed already")
    return reverse_gradient(spikes).sum(1 if batch_first else 0)


def count_loss(spikes: Tensor, labels: Tensor, *, desired: float, undesired: float, batch_first: bool = True) -> Tensor:
    """The count loss: the labelled neuron should fire at least `desired` times, every other at most `undesired` times.

    With n spikes of a neuron in T steps and d = max(desired − n, 0) for the labelled neuron, d = max(n − undesired, 0)
    for the others, the loss is the sum of ½·T·(d/T)² over the neurons, averaged over the batch: half the square of the
    distance in units of T, for each step. There is no penalty beyond the targets. Source: the code of Zhu et al.,
    NeurIPS 2022, which sums over the batch.

    It is a readout: it reverses the gradient's sign itself. Pass the output layer's spikes as they are, in training
    those with the label spike (`LabelledSpikes.training_spikes`), since a silent neuron receives no gradient.

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
        ValueError: for shapes that do not fit, an empty batch, labels or counts out of range, or `spikes` that come
            from `reverse_gradient`, which would turn the sign back.

    Example:
        >>> spikes = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]], requires_grad=True)
        >>> loss = count_loss(spikes, torch.tensor([0]), desired=2, undesired=1)
        >>> loss.item()  # both neurons are one spike from their targets
        0.5
        >>> loss.backward()
        >>> spikes.grad.tolist()  # ∂L/∂(spike time): the labelled neuron should fire earlier, the other later
        [[[0.5, -0.5], [0.5, -0.5]]]
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
