"""What a recipe's outputs are trained for, and how they name a class."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from srm_triton import losses
from srm_triton.networks import Readout
from srm_triton.training.fields import Table

LossName = Literal[
    "cross_entropy",
    "count_loss",
    "enhanced_count_loss",
    "rate_cross_entropy",
    "first_spike_cross_entropy",
    "van_rossum_loss",
    "stepwise_cross_entropy",
]
_OF_MEMBRANES = ("cross_entropy", "stepwise_cross_entropy")


@dataclass(frozen=True)
class Loss(Table):
    """A loss; in TOML its options stand beside its name.

    Args:
        name: ``"cross_entropy"``, of the counts of spikes or of the last membrane potential, or a loss of
            `srm_triton.losses`.
        options: what it takes by name, such as ``label_smoothing`` or ``desired``.
    """

    name: LossName = "cross_entropy"
    options: dict[str, bool | float] = field(default_factory=dict)


def check_loss(loss: Loss, readout: Readout, steps: int) -> None:
    """Checks that a loss takes its options, and outputs of this read-out and length.

    Raises:
        ValueError: if it does not.
    """
    if readout == "membrane" and loss.name not in _OF_MEMBRANES:
        raise ValueError(
            f"[loss] name must be one of {_OF_MEMBRANES} for the read-out 'membrane', got {loss.name!r}; the others "
            "take readout = 'spikes'"
        )
    function = _cross_entropy if loss.name == "cross_entropy" else getattr(losses, loss.name)
    keywords = [item for item in inspect.signature(function).parameters.values() if item.kind is item.KEYWORD_ONLY]
    allowed = [item.name for item in keywords if item.name not in ("batch_first", "target")]
    required = {item.name for item in keywords if item.default is item.empty}
    if (others := loss.options.keys() - set(allowed)) or (others := required - loss.options.keys()):
        raise ValueError(
            f"[loss] {min(others)} must be {'given' if min(others) in required else 'left out'} for {loss.name}, "
            f"which takes {', '.join(allowed) or 'no options'}"
        )
    try:
        compute_loss(loss, readout, torch.zeros(1, steps, 2), torch.zeros(1, dtype=torch.int64))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"[loss] {error}") from error


def compute_loss(loss: Loss, readout: Readout, outputs: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of outputs [batch, time, classes]."""
    if loss.name == "cross_entropy":
        return _cross_entropy(_answers(readout, outputs), labels, **loss.options)
    function: Callable[..., Tensor] = getattr(losses, loss.name)
    return function(outputs, labels, **loss.options)


def predict_classes(loss: Loss, readout: Readout, outputs: Tensor) -> Tensor:
    """The class of each sample, by the rule that goes with the loss."""
    if readout == "membrane":
        return (outputs.mean(1) if loss.name == "stepwise_cross_entropy" else _answers(readout, outputs)).argmax(1)
    if loss.name == "first_spike_cross_entropy":
        return losses.predict_first_spike(outputs)
    return losses.predict(outputs)


def _answers(readout: Readout, outputs: Tensor) -> Tensor:
    return outputs[:, -1] if readout == "membrane" else losses.spike_counts(outputs)


def _cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
