"""Frames: a recording of events as the dense input of a network."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from srm_triton.checks import check_integers, check_number, check_option, shown
from srm_triton.data.events import Events, UnitEvents

By = Literal["time", "number"]
Values = Literal["counts", "binary"]


# by the axes of the sensor: the tuple, and its names by those of tonic
_KINDS = {
    1: (UnitEvents, {"t": "time", "x": "unit"}),
    2: (Events, {"t": "time", "y": "y", "x": "x", "p": "polarity"}),
}


@dataclass(frozen=True)
class Frames:
    """Sums up the events of a recording in each of `steps` frames; a transform for data sets of events.

    An event of pixel y, x falls on y·height // sensor height, x·width // sensor width of smaller frames (so that a
    pixel of 48 gathers 2 or 3 rows of 128), one of a unit likewise.

    Args:
        steps: number of frames T.
        sensor: where events can come from, (height, width) or (units,).
        size: the same of the frames, at most as large; None for that of the sensor.
        by: ``"time"``: frames last equally long. ``"number"``: frames have equally many events, to within one, in the
            order of time.
        values: ``"counts"`` of events, or ``"binary"``, 1 where there was any.
        polarities: 2, darker and brighter apart, or 1, both together; without meaning for units.
        duration: microseconds that the frames span from time 0 on, where `by` is time; later events are left out. None
            for the time from the first to the last event.

    Raises:
        TypeError: if a value has another type.
        ValueError: if a value is out of its range; when called, for columns of different lengths, for events outside
            the sensor, of other polarities than 0 and 1, or (with a duration) before time 0.

    Shape:
        A recording to float32 [time, polarity, height, width], or [time, units]. A recording is an `Events`, a
        `UnitEvents`, or a structured NumPy array as data sets of tonic give it, with the fields ``t`` (in
        microseconds), ``y``, ``x`` and ``p``; for units ``t`` and ``x``.

    Example:
        >>> events = Events(*torch.tensor([[0, 10, 19], [0, 33, 0], [0, 0, 0], [1, 0, 1]]))
        >>> frames = Frames(steps=2, sensor=(34, 34), size=(17, 17))(events)
        >>> frames.shape, frames[1].nonzero().tolist()
        (torch.Size([2, 2, 17, 17]), [[0, 0, 16], [1, 0, 0]])
    """

    steps: int
    sensor: tuple[int, ...]
    size: tuple[int, ...] | None = None
    by: By = "time"
    values: Values = "counts"
    polarities: int = 2
    duration: int | None = None

    def __post_init__(self) -> None:
        self._set(steps=check_number("steps", self.steps, 1, whole=True))
        for name, sizes in (("sensor", self.sensor), ("size", self.sensor if self.size is None else self.size)):
            if not isinstance(sizes, tuple) or len(sizes) not in (1, 2):
                raise TypeError(f"{name} must be a tuple (height, width) or (units,), got {shown(sizes)}")
            counts = tuple(check_number(name, number, 1, whole=True) for number in sizes)
            if getattr(self, name) is not None:
                self._set(**{name: counts})
        if self.size is not None and (
            len(self.size) != len(self.sensor) or any(map(int.__gt__, self.size, self.sensor))
        ):
            raise ValueError(f"size must be at most as large as the sensor, {self.sensor}, got {self.size}")
        check_option("by", self.by, get_args(By))
        check_option("values", self.values, get_args(Values))
        self._set(polarities=check_option("polarities", self.polarities, (1, 2)))
        if self.duration is not None:
            self._set(duration=check_number("duration", self.duration, 1, whole=True))
            if self.by == "number":
                raise ValueError("duration must be None where by is 'number'")

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __call__(self, recording: Any) -> Tensor:
        """Returns the frames of a recording."""
        time, *rest = _columns(recording, len(self.sensor))
        axes = list(_KINDS[len(self.sensor)][1].values())[1:]
        for name, values, count in zip(axes, rest, (*self.sensor, 2), strict=False):
            low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
            if low < 0 or high >= count:
                raise ValueError(f"events must have {name} from 0 to {count - 1}, got from {low} to {high}")
        sizes = self.size or self.sensor
        places = [place * size // sensor for place, size, sensor in zip(rest, sizes, self.sensor, strict=False)]
        if len(self.sensor) == 2:
            sizes = (self.polarities, *sizes)
            places.insert(0, rest[2] * self.polarities // 2)
        index = self._steps_of(time)
        within = index < self.steps
        for place, size in zip(places, sizes, strict=True):
            index = index * size + place
        shape = torch.Size((self.steps, *sizes))
        frames = torch.bincount(index[within], minlength=shape.numel()).view(shape).float()
        return frames.clamp(max=1) if self.values == "binary" else frames

    def _steps_of(self, time: Tensor) -> Tensor:
        """The frame of each event; `steps` or more for those that are left out."""
        if not len(time):
            return time
        if self.by == "number":
            step = torch.empty_like(time)
            step[time.argsort(stable=True)] = torch.arange(len(time), device=time.device) * self.steps // len(time)
            return step
        if self.duration is None:
            return (time - time.min()) * self.steps // (time.max() - time.min() + 1)
        if int(time.min()) < 0:
            raise ValueError(f"events must not come before time 0, got one at {int(time.min())} µs")
        return time * self.steps // self.duration


def _columns(recording: Any, axes: int) -> tuple[Tensor, ...]:
    """Time, y and x or unit, and for pixels polarity, of a recording of any kind, in int64."""
    expected, names = _KINDS[axes]
    if isinstance(recording, expected):
        columns = tuple(getattr(recording, name) for name in names.values())
        for name, column in zip(names.values(), columns, strict=True):
            check_integers(name, column)
    else:
        fields = getattr(getattr(recording, "dtype", None), "names", None) or ()
        if not names.keys() <= set(fields):
            found = f" with the fields {', '.join(fields)}" if fields else ""
            raise TypeError(
                f"events must be {expected.__name__} or a structured array with the fields {', '.join(names)}, as the "
                f"sensor has {axes} axes, got {type(recording).__name__}{found}"
            )
        for name in names:
            if recording[name].dtype.kind not in "iub":
                raise TypeError(f"events must have integers in the field {name}, got {recording[name].dtype}")
        columns = tuple(torch.from_numpy(recording[name].astype("int64")) for name in names)
    shapes = [list(column.shape) for column in columns]
    if any(shape != shapes[0] or len(shape) != 1 for shape in shapes):
        raise ValueError(
            f"events must have as many values of {', '.join(names.values())}, on one axis, got the shapes "
            f"{', '.join(map(str, shapes))}"
        )
    return tuple(column.long() for column in columns)
