"""N-MNIST, handwritten digits seen by a moving event camera.

Source: Orchard et al., Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades (Frontiers in
Neuroscience 2015), and https://www.garrickorchard.com/datasets/n-mnist. An event has 40 bits, the highest first: x in
8, y in 8, the polarity in 1 and the time in microseconds in 23.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from srm_triton.data.events import EventDataset, Events
from srm_triton.data.files import DataError, read_bytes

_SIDE = 34


def read_nmnist(path: str | Path) -> Events:
    """Reads a recording of N-MNIST.

    Args:
        path: a file ``.bin``, plain or with the further ending ``.gz``.

    Raises:
        OSError: if the file cannot be read.
        DataError: if it is empty, cut within an event, or holds events beyond 34 by 34 pixels.
    """
    path = Path(path)
    content = read_bytes(path)
    if not content or len(content) % 5:
        raise DataError(f"{path}: expected events of 5 bytes, found a file of {len(content)} bytes")
    x, y, high, middle, low = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, 5).long().unbind(1)
    if max(int(x.max()), int(y.max())) >= _SIDE:
        raise DataError(
            f"{path}: expected x and y from 0 to {_SIDE - 1}, found x up to {x.max()} and y up to {y.max()}"
        )
    return Events((high & 0x7F) << 16 | middle << 8 | low, x, y, high >> 7)


class NMNIST(EventDataset):
    """N-MNIST as a data set of PyTorch: 60000 and 10000 recordings of 34×34 pixels, ten classes.

    Args:
        folder: holds ``Train/0`` to ``Train/9`` and ``Test/0`` to ``Test/9`` with files ``.bin`` (or ``.bin.gz``).
        train: whether to load the training samples, or those for testing.
        transform: is given the `Events` of a sample, such as `Frames`; None returns them.

    Attributes:
        labels: int64 [samples].
        classes: 10.

    Raises:
        ValueError: if `train` is no bool.
        FileNotFoundError: if a folder is missing.
        DataError: if a folder has no recording; on access to a sample as `read_nmnist`.
    """

    classes = 10

    def __init__(
        self, folder: str | Path, *, train: bool = True, transform: Callable[[Events], Any] | None = None
    ) -> None:
        super().__init__(train, transform)
        self.paths: list[Path] = []
        labels: list[int] = []
        for label in range(self.classes):
            place = Path(folder) / ("Train" if train else "Test") / str(label)
            if not place.is_dir():
                raise FileNotFoundError(f"{place}: expected a folder of N-MNIST's recordings of {label}, found none")
            paths = sorted(path for path in place.glob("[!.]*") if path.name.endswith((".bin", ".bin.gz")))
            if not paths:
                raise DataError(f"{place}: expected recordings of the class {label}, found no file .bin")
            self.paths += paths
            labels += [label] * len(paths)
        self.labels = torch.tensor(labels)

    def _read(self, index: int) -> Events:
        return read_nmnist(self.paths[index])
