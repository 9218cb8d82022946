"""What losses and predictions share: their arguments, checked, and cross-entropy."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srm_triton.checks import check_entries, check_labels, check_option, check_tensor, time_axes

_POTENTIALS = (
    "; potentials of an SRMReadout go into stepwise_cross_entropy, or their mean into F.cross_entropy and argmax"
)


def as_trains(outputs: Any, batch_first: bool) -> Tensor:
    """Outputs as [batch, time, classes], at least in float32, since sums in half precision overflow and round.

    Raises:
        TypeError: if `outputs` is not a floating-point tensor.
        ValueError: if it has another rank, or for another option.
    """
    check_option("batch_first", batch_first, (False, True))
    check_tensor("spikes", outputs, time_axes(batch_first, "classes"))
    trains: Tensor = outputs if batch_first else outputs.transpose(0, 1)
    return trains.to(torch.promote_types(trains.dtype, torch.float32))


def check_spikes(trains: Tensor, *, shares: bool) -> None:
    """Checks that outputs are spikes, 0 or 1, or with `shares` means of some; on a GPU it would wait, and is left out.

    Raises:
        ValueError: for other values, such as membrane potentials.
    """
    if trains.device.type != "cpu":
        return
    allowed = (trains >= 0) & (trains <= 1) if shares else (trains == 0) | (trains == 1)
    between = " or, as means over a population, between" if shares else ""
    check_entries("spikes", trains, allowed, f"be 0 or 1{between}{_POTENTIALS}")


def prepare(outputs: Any, labels: Any, batch_first: bool) -> tuple[Tensor, Tensor]:
    """What `as_trains` makes, and int64 labels.

    Raises:
        TypeError: as `as_trains`, or if `labels` is not a tensor of integers.
        ValueError: as `as_trains`, for labels that do not fit or are out of range, or an empty axis.
    """
    trains = as_trains(outputs, batch_first)
    if 0 in trains.shape:
        raise ValueError(
            f"spikes must have at least one sample, step and class, got {list(trains.shape)} (batch, time, classes)"
        )
    return trains, check_labels(labels, "spikes", trains, trains.shape[0], trains.shape[2])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of [samples, classes]; no label is ignored, unlike −100 by PyTorch's own."""
    return -F.log_softmax(logits, 1).gather(1, labels[:, None]).mean()
