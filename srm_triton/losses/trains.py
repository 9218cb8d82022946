"""Losses on when output neurons fire."""

import torch
from torch import Tensor

from srm_triton.checks import check_entries, check_number, check_tensor, mark_labels
from srm_triton.losses.arguments import check_spikes, cross_entropy, prepare
from srm_triton.ops.srm_membrane import srm_membrane
from srm_triton.parameters import SRMParameters


def first_spike_cross_entropy(
    spikes: Tensor, labels: Tensor, *, scale: float = 1.0, silent: float = -3.0, batch_first: bool = True
) -> Tensor:
    """Cross-entropy of first-spike times ("TTFS", time to first spike): the labelled neuron should fire first.

    With the first spike of a neuron at step t = 0 … T−1 and the softmax p of scale·(T − t), or `silent` for a neuron
    that does not fire, the loss is −log p[label]/scale, averaged over the batch. A time has no derivative with respect
    to spikes; by the convention of this package an earlier spike is a stronger one, so the derivative with respect to
    1 − t/T goes to the first spike: T·(p − 1) (labelled: fire earlier) or T·p (later), divided by the batch. All other
    steps receive 0, but every step of a silent labelled neuron as much as its first spike would, so that it comes to
    fire. Source: the code of Zhu et al., NeurIPS 2023, with scale 1/T, where a spike is added to labelled neurons
    instead.

    Choose it when the answer should come early, with few spikes; predict by `predict_first_spike`.

    Args:
        spikes: output spikes, [batch, time, classes].
        labels: the class of each sample, integers [batch].
        scale: logit of a step, > 0. With 1/T, as published, softmax hardly tells classes apart, and less is learned.
        silent: logit of a neuron that does not fire.
        batch_first: False for [time, batch, classes].

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: if `spikes` is not a floating-point tensor or `labels` not one of integers.
        ValueError: for values that are no spikes, shapes that do not fit, an empty axis, labels out of range, or
            another option.

    Example:
        >>> spikes = torch.tensor([[[0.0, 1.0], [1.0, 1.0]]], requires_grad=True)
        >>> first_spike_cross_entropy(spikes, torch.tensor([0])).backward()
        >>> spikes.grad  # the labelled neuron's first spike should be earlier, the other's later
        tensor([[[ 0.0000,  1.4621],
                 [-1.4621,  0.0000]]])
    """
    scale = check_number("scale", scale, 0, above=True)
    silent = check_number("silent", silent, -1e6)
    spikes, labels = prepare(spikes, labels, batch_first)
    check_spikes(spikes, shares=False)
    steps = spikes.shape[1]
    fired = spikes.detach() != 0
    until = fired.cumsum(1)
    times = (until == 0).sum(1)  # T for silent neurons
    values = torch.where(times < steps, (steps - times).to(spikes.dtype) * scale, silent)
    waits = mark_labels(labels, spikes.shape[2]) & (times == steps)
    receives = (fired & (until == 1)) | waits[:, None]
    strength = torch.where(receives, spikes, 0).sum(1) * (steps * scale)
    return cross_entropy(values + (strength - strength.detach()), labels) / scale


def van_rossum_loss(
    spikes: Tensor, labels: Tensor, *, target: Tensor | None = None, tau_s: float = 3.0, batch_first: bool = True
) -> Tensor:
    """Van Rossum distance ("kernel"): the labelled neuron should fire as `target` says, all others not at all.

    The difference of spikes and target is filtered by the synapse, δ[t] = (1 − 1/τ_s)·δ[t−1] + (spike − target)[t]/τ_s,
    and the loss is Σ ½·δ² over steps and classes, averaged over the batch. It is an ordinary function of the spikes:
    step t receives Σ (1 − 1/τ_s)^(k−t)/τ_s·δ[k] over k ≥ t, divided by the batch, negative where spikes are missing
    from there on. Source: van Rossum, Neural Computation 2001; the code of Zhu et al., NeurIPS 2023.

    Choose it when neurons should fire at given times.

    Args:
        spikes: output spikes, [batch, time, classes].
        labels: the class of each sample, integers [batch].
        target: the train wanted of the labelled neuron, 0 or 1 for each step, [time], floating point; None for the
            published one: every step but the first, or every other step if there are 20 or more.
        tau_s: time constant of the filter in steps, > 1.
        batch_first: False for [time, batch, classes].

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: as `first_spike_cross_entropy`.
        ValueError: as `first_spike_cross_entropy`, or for another `target` or `tau_s`.

    Example:
        >>> spikes = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]], requires_grad=True)
        >>> van_rossum_loss(spikes, torch.tensor([0]), tau_s=2.0).backward()
        >>> spikes.grad  # one spike is missing, one is too many; a spike before would do half of it
        tensor([[[-0.1250,  0.1250],
                 [-0.2500,  0.2500]]])
    """
    tau_s = check_number("tau_s", tau_s, 1, above=True)
    spikes, labels = prepare(spikes, labels, batch_first)
    check_spikes(spikes, shares=True)
    steps, classes = spikes.shape[1:]
    if target is None:
        t = torch.arange(steps, device=spikes.device)
        target = (t > 0) if steps < 20 else (steps - t) % 2 == 1
    else:
        check_tensor("target", target, "[time]")
        if len(target) != steps or target.device != spikes.device:
            raise ValueError(
                f"target must have {steps} entries (the number of steps) on {spikes.device}, "
                f"got {len(target)} on {target.device}"
            )
        if target.device.type == "cpu":  # elsewhere it would wait
            check_entries("target", target, (target >= 0) & (target <= 1), "lie in 0 … 1")
    wanted = target.to(spikes.dtype)[:, None] * mark_labels(labels, classes)[:, None]
    integrator = SRMParameters(tau_m=tau_s, tau_s=1.0)  # its potential is τ_s times the filtered difference
    distance = srm_membrane(spikes - wanted, integrator) / tau_s
    return distance.square().sum() / (2 * len(spikes))


def stepwise_cross_entropy(spikes: Tensor, labels: Tensor, *, batch_first: bool = True) -> Tensor:
    """Cross-entropy at each step ("TET", temporal efficient training), averaged over steps and batch.

    With the softmax p of a step's outputs, that step receives (p − 1)/T (labelled) or p/T, divided by the batch: as for
    the cross-entropy of counts, but every step is asked to decide, whatever the others do. Spikes, as logits of 0 and
    1, leave p of the label at most e/(e + classes − 1), so the loss does not come near 0. Source: Deng et al., ICLR
    2022, without its regularisation, as in the code of Zhu et al., NeurIPS 2023.

    Choose it when every step should decide, so that a sequence may be cut short, or for membrane potentials.

    Args:
        spikes: output spikes, or membrane potentials of an `SRMReadout`, [batch, time, classes].
        labels: the class of each sample, integers [batch].
        batch_first: False for [time, batch, classes].

    Returns:
        The loss, a scalar.

    Raises:
        TypeError: as `first_spike_cross_entropy`.
        ValueError: for shapes that do not fit, an empty axis, labels out of range, or another option.

    Example:
        >>> spikes = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
        >>> stepwise_cross_entropy(spikes, torch.tensor([0]))  # of the steps, 0.3133 and 0.6931
        tensor(0.5032)
    """
    spikes, labels = prepare(spikes, labels, batch_first)
    return cross_entropy(spikes.flatten(0, 1), labels.repeat_interleave(spikes.shape[1]))
