"""Frames of events, against sums in plain Python."""

import random
from itertools import product

import numpy as np
import pytest
import torch

from srm_triton.data import Events, Frames, UnitEvents

DRAWN = random.Random(1)
# in no order of time, several at once
CAMERA = [(DRAWN.randrange(400), DRAWN.randrange(34), DRAWN.randrange(20), DRAWN.randrange(2)) for _ in range(301)]
TONIC = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", bool)])


def events(rows: list[tuple[int, ...]]) -> Events:
    return Events(*(torch.tensor(column) for column in zip(*rows, strict=True)))


def structured(rows: list[tuple[int, ...]]):
    return np.array([(x, y, t, p) for t, x, y, p in rows], TONIC)


@pytest.mark.parametrize(
    ("by", "values", "polarities"), list(product(("time", "number"), ("counts", "binary"), (1, 2)))
)
@pytest.mark.parametrize("size", [None, (7, 10)])
def test_frames_of_pixels(by, values, polarities, size):
    steps, height, width = 6, *(size or (20, 34))
    expected = np.zeros((steps, polarities, height, width))
    first, last = min(row[0] for row in CAMERA), max(row[0] for row in CAMERA)
    for number, (t, x, y, p) in enumerate(sorted(CAMERA, key=lambda row: row[0])):
        step = next(
            step
            for step in range(steps)
            if (
                number * steps < (step + 1) * 301
                if by == "number"
                else (t - first) * steps < (step + 1) * (last + 1 - first)
            )
        )
        row = next(row for row in range(height) if y * height < (row + 1) * 20)
        column = next(column for column in range(width) if x * width < (column + 1) * 34)
        expected[step, p if polarities == 2 else 0, row, column] += 1
    if values == "binary":
        expected = (expected > 0).astype(float)
    frames = Frames(steps, (20, 34), size, by=by, values=values, polarities=polarities)
    for recording in (events(CAMERA), structured(CAMERA)):
        result = frames(recording)
        assert result.dtype == torch.float32 and torch.equal(result, torch.tensor(expected).float())
    if by == "number" and values == "counts":
        assert result.sum((1, 2, 3)).tolist() == [51, 50, 50, 50, 50, 50]


def test_which_pixels_of_128_meet_in_one_of_48():
    rows = events([(0, x, 0, 0) for x in range(128)])
    counts = Frames(1, (128, 128), (48, 48))(rows)[0, 0, 0]
    assert counts.tolist() == [3, 3, 2] * 16


def test_frames_of_units_with_a_duration():
    recording = UnitEvents(torch.tensor([0, 99, 100, 250, 299, 300, 900]), torch.tensor([0, 0, 9, 4, 5, 6, 7]))
    frames = Frames(3, (10,), (5,), duration=300)(recording)
    assert frames.tolist() == [[2, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 2, 0, 0]]  # from 300 on nothing
    spoken = np.array([(0, 0, 1), (250, 4, 1)], [("t", int), ("x", int), ("p", int)])  # as tonic gives SHD
    assert Frames(2, (10,))(spoken).nonzero().tolist() == [[0, 0], [1, 4]]


@pytest.mark.parametrize("by", ["time", "number"])
def test_recordings_of_few_events(by):
    frames = Frames(4, (3, 3), by=by)
    assert torch.equal(frames(structured([])), torch.zeros(4, 2, 3, 3))
    assert frames(events([(7, 1, 2, 1)])).nonzero().tolist() == [[0, 1, 2, 1]]
    assert frames(events([(7, 1, 2, 1), (7, 0, 0, 0)])).sum() == 2


class LikeTonic(torch.utils.data.Dataset):
    """Calls its transform as data sets of tonic do."""

    sensor_size = (34, 20, 2)

    def __init__(self, transform=None):
        self.transform = transform

    def __len__(self):
        return 4

    def __getitem__(self, index):
        recording = structured(CAMERA[index * 50 :])
        return (self.transform(recording) if self.transform else recording), index


def test_tonic_data_sets_work_as_they_are():
    ((inputs, labels),) = torch.utils.data.DataLoader(LikeTonic(Frames(5, (20, 34))), batch_size=4)
    assert inputs.shape == (4, 5, 2, 20, 34) and labels.tolist() == [0, 1, 2, 3]
    assert inputs.sum((1, 2, 3, 4)).tolist() == [301, 251, 201, 151]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint64])
@pytest.mark.parametrize("options", [{}, {"by": "number"}, {"duration": 121}])
def test_events_of_any_integer_type(dtype, options):
    """Products of what fits into 8 bits do not."""
    recording = events([(t, t % 34, t % 20, t % 2) for t in range(0, 121, 3)])
    frames = Frames(50, (20, 34), (11, 17), **options)
    found = frames(Events(*(column.to(dtype) for column in recording)))
    assert torch.equal(found, frames(recording)) and found.sum() == 41


@pytest.mark.parametrize(
    ("recording", "error", "message"),
    [
        (events([(0, 34, 0, 0)]), ValueError, "events must have x from 0 to 33, got from 34 to 34"),
        (events([(0, 0, 20, 0), (0, 0, 1, 0)]), ValueError, "events must have y from 0 to 19, got from 1 to 20"),
        (structured([(0, -1, 0, 0)]), ValueError, "events must have x from 0 to 33, got from -1 to -1"),
        (events([(0, 0, 0, 2)]), ValueError, "events must have polarity from 0 to 1, got from 2 to 2"),
        (events([(-5, 0, 0, 1)]), ValueError, "events must not come before time 0, got one at -5 µs"),
        (Events(*torch.zeros(4, 3)), TypeError, "time must be a tensor of integers, got torch.float32"),
        (Events([0], [0], [0], [0]), TypeError, "time must be a tensor of integers, got list"),
        (
            events([(0, 0, 0, 0)] * 3)._replace(x=torch.tensor([1])),
            ValueError,
            r"events must have as many values of time, y, x, polarity, on one axis, got .*\[3\], \[3\], \[1\], \[3\]",
        ),
        (np.zeros((3, 4)), TypeError, "events must be Events or a structured array with .* t, y, x, p, .* got ndarray"),
        (np.zeros(3, [("t", int), ("x", int)]), TypeError, "got ndarray with the fields t, x"),
        (UnitEvents(torch.zeros(1), torch.zeros(1)), TypeError, "as the sensor has 2 axes, got UnitEvents"),
        (np.zeros(3, [(name, float) for name in "txyp"]), TypeError, "must have integers in the field t, got float64"),
    ],
)
def test_recordings_of_other_content(recording, error, message):
    with pytest.raises(error, match=message):
        Frames(2, (20, 34), duration=10)(recording)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be finite and ≥ 1, got 0"),
        ({"sensor": 34}, TypeError, r"sensor must be a tuple \(height, width\) or \(units,\), got 34"),
        ({"sensor": (2, 34, 34)}, TypeError, "sensor must be a tuple"),
        ({"sensor": (34, 0)}, ValueError, "sensor must be finite and ≥ 1, got 0"),
        ({"size": (35, 34)}, ValueError, r"size must be at most as large as the sensor, \(34, 34\), got \(35, 34\)"),
        ({"size": (34,)}, ValueError, "size must be at most as large as the sensor"),
        ({"by": "events"}, ValueError, r"by must be one of \('time', 'number'\), got 'events'"),
        ({"values": "sum"}, ValueError, r"values must be one of \('counts', 'binary'\), got 'sum'"),
        ({"polarities": 3}, ValueError, r"polarities must be one of \(1, 2\), got 3"),
        ({"polarities": True}, ValueError, "polarities must be one of"),
        ({"duration": 0}, ValueError, "duration must be finite and ≥ 1, got 0"),
        ({"duration": 5, "by": "number"}, ValueError, "duration must be None where by is 'number'"),
    ],
)
def test_frames_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        Frames(**({"steps": 3, "sensor": (34, 34)} | arguments))
