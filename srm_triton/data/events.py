"""Recordings of events, and what data sets of them share."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from srm_triton.checks import check_option


class Events(NamedTuple):
    """Events of a camera that reports changes of brightness, in the order of its file."""

    time: Tensor
    """int64 [events], microseconds."""
    x: Tensor
    """int64 [events], the column of the pixel, 0 on the left."""
    y: Tensor
    """int64 [events], the row of the pixel, 0 at the top."""
    polarity: Tensor
    """int64 [events], 1 where it became brighter, 0 where darker."""


class UnitEvents(NamedTuple):
    """Spikes of numbered units, such as the channels of a cochlea, in the order of their file."""

    time: Tensor
    """int64 [events], microseconds."""
    unit: Tensor
    """int64 [events], the number of the unit that fired."""


class EventDataset(Dataset[tuple[Any, int]]):
    """Labelled recordings, each read when it is accessed.

    Args:
        train: whether to load the training samples, or those for testing.
        transform: is given the events of a sample; None returns them.

    Attributes:
        labels: int64 [samples].
        classes: their number.

    Raises:
        ValueError: if `train` is no bool.
    """

    labels: Tensor
    classes: int

    def __init__(self, train: bool, transform: Callable[[Any], Any] | None) -> None:
        check_option("train", train, (False, True))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        index = range(len(self))[index]
        events = self._read(index)
        return (self.transform(events) if self.transform else events), int(self.labels[index])

    def _read(self, index: int) -> Any:
        """The events of a sample."""
        raise NotImplementedError
