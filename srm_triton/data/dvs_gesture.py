"""DVS-Gesture, eleven gestures of hands and arms seen by an event camera.

Source: Amir et al., A Low Power, Fully Event-Based Gesture Recognition System (CVPR 2017), and the description that
comes with the data. A recording holds several gestures; ``<recording>_labels.csv`` says which, from when, until when.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from srm_triton.data.aedat import read_aedat
from srm_triton.data.events import EventDataset, Events
from srm_triton.data.files import DataError, find_file

_COLUMNS = ["class", "startTime_usec", "endTime_usec"]
_SIDE = 128


class _Gesture(NamedTuple):
    recording: Path
    start: int
    end: int


class DVSGesture(EventDataset):
    """DVS-Gesture as a data set of PyTorch: a sample is one gesture, 128×128 pixels, eleven classes.

    Time counts from the start of the gesture. Each access reads from a recording of many megabytes; to train for many
    epochs, make the frames once, by ``torch.stack([frames for frames, _ in dataset])``.

    Args:
        folder: holds ``trials_to_train.txt`` and ``trials_to_test.txt``, the recordings ``.aedat`` (or ``.aedat.gz``)
            that they name, and ``_labels.csv`` of each.
        train: whether to load the training samples, or those for testing.
        transform: is given the `Events` of a sample, such as `Frames`; None returns them.

    Attributes:
        labels: int64 [samples], the numbers of the files less 1.
        classes: 11.

    Raises:
        ValueError: if `train` is no bool.
        FileNotFoundError: if a file is missing.
        DataError: if a file is not what its name says; on access to a sample also as `read_aedat`, which includes a
            gesture without an event, and for one beyond 128 by 128 pixels.
    """

    classes = 11

    def __init__(
        self, folder: str | Path, *, train: bool = True, transform: Callable[[Events], Any] | None = None
    ) -> None:
        super().__init__(train, transform)
        self.gestures: list[_Gesture] = []
        labels: list[int] = []
        trials = Path(folder) / f"trials_to_{'train' if train else 'test'}.txt"
        for name in filter(None, map(str.strip, _text(trials).splitlines())):
            recording = find_file(Path(folder) / name)
            if recording is None or not name.endswith(".aedat"):
                raise FileNotFoundError(f"{trials}: expected names of recordings .aedat beside it, found {name!r}")
            for label, start, end in _read_labels(Path(folder) / f"{name.removesuffix('.aedat')}_labels.csv"):
                self.gestures.append(_Gesture(recording, start, end))
                labels.append(label)
        if not labels:
            raise DataError(f"{trials}: expected at least one gesture, found none")
        self.labels = torch.tensor(labels)

    def _read(self, index: int) -> Events:
        path, start, end = self.gestures[index]
        events = read_aedat(path, start, end)
        if max(int(events.x.max()), int(events.y.max())) >= _SIDE:
            raise DataError(
                f"{path}: expected x and y from 0 to {_SIDE - 1}, found {events.x.max()} and {events.y.max()}"
            )
        return events._replace(time=events.time - start)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected text, found other bytes ({error})") from error


def _read_labels(path: Path) -> list[tuple[int, int, int]]:
    """The class, counted from 0, the start and the end of each gesture of a recording."""
    header, *rows = [[cell.strip() for cell in row] for row in csv.reader(_text(path).splitlines()) if row] or [[]]
    if header != _COLUMNS:
        raise DataError(f"{path}: expected the columns {', '.join(_COLUMNS)}, found {', '.join(header)}")
    gestures = []
    for row in rows:
        if len(row) != 3 or not all(map(str.isdecimal, row)):
            raise DataError(f"{path}: expected three whole numbers in each row, found {','.join(row)}")
        label, start, end = map(int, row)
        if not 1 <= label <= DVSGesture.classes:
            raise DataError(f"{path}: expected classes from 1 to {DVSGesture.classes}, found {label}")
        if start >= end:
            raise DataError(f"{path}: expected gestures that end after their start, found {','.join(row)}")
        gestures.append((label - 1, start, end))
    return gestures
