"""Recordings of events, as the readers of event files return them."""

from typing import NamedTuple

from torch import Tensor


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
