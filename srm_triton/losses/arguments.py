"""What the losses share: their arguments, checked, and cross-entropy."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srm_triton.checks import check_labels, check_tensor, time_axes


def prepare(spikes: Any, labels: Any, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Spikes as [batch, time, classes], at least in float32 since sums overflow in half precision, and int64 labels.

    Raises:
        TypeError: if `spikes` is not a floating-point tensor or `labels` not a tensor of integers.
        ValueError: for shapes that do not fit, an empty axis, or labels out of range.
    """
    check_tensor("spikes", spikes, time_axes(batch_first, "classes"))
    spikes = spikes if batch_first else spikes.transpose(0, 1)
    if 0 in spikes.shape:
        raise ValueError(
            f"spikes must have at least one sample, step and class, got {list(spikes.shape)} (batch, time, classes)"
        )
    labels = check_labels(labels, "spikes", spikes, spikes.shape[0], spikes.shape[2])
    return spikes.to(torch.promote_types(spikes.dtype, torch.float32)), labels


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of [samples, classes]; no label is ignored, unlike −100 by PyTorch's own."""
    return -F.log_softmax(logits, 1).gather(1, labels[:, None]).mean()
