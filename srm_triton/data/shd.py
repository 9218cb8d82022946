"""The Spiking Heidelberg Digits, spoken digits behind an artificial cochlea.

Source: Cramer et al., The Heidelberg Spiking Data Sets for the Systematic Evaluation of Spiking Neural Networks (IEEE
Transactions on Neural Networks and Learning Systems 2022), and https://compneuro.net. An HDF5 file holds ``labels``
and, ragged, an array of times in seconds and one of units for each sample: ``spikes/times`` and ``spikes/units``.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from srm_triton.data.events import EventDataset, UnitEvents
from srm_triton.data.files import DataError, find_file, optional_module, read_bytes

_TIMES, _UNITS, _LABELS = "spikes/times", "spikes/units", "labels"


class SHD(EventDataset):
    """SHD as a data set of PyTorch: 8156 and 2264 recordings of 700 units, ten digits in two languages.

    Args:
        folder: holds ``shd_train.h5`` and ``shd_test.h5``, each plain or with the further ending ``.gz`` (which is
            unpacked into memory).
        train: whether to load the training samples, or those for testing.
        transform: is given the `UnitEvents` of a sample, such as `Frames`; None returns them.

    Attributes:
        labels: int64 [samples].
        classes: 20: zero to nine in German, then in English.

    Raises:
        ValueError: if `train` is no bool.
        ModuleNotFoundError: without h5py.
        FileNotFoundError: if the file is missing.
        DataError: if it is damaged or holds something else, also on access to a sample.
    """

    classes = 20
    units = 700

    def __init__(
        self, folder: str | Path, *, train: bool = True, transform: Callable[[UnitEvents], Any] | None = None
    ) -> None:
        super().__init__(train, transform)
        path = Path(folder) / f"shd_{'train' if train else 'test'}.h5"
        found = find_file(path)
        if found is None:
            raise FileNotFoundError(f"{path}: expected a file (plain or .gz), found none")
        self.path = found
        self._content = read_bytes(found) if found.suffix == ".gz" else None
        with self._file() as file:
            if missing := [name for name in (_TIMES, _UNITS, _LABELS) if name not in file]:
                raise DataError(f"{found}: expected {', '.join(missing)}, found only {', '.join(file) or 'nothing'}")
            labels = file[_LABELS][()]
            lengths = [len(file[name]) for name in (_TIMES, _UNITS, _LABELS)]
        if labels.dtype.kind not in "iu":
            raise DataError(f"{found}: expected labels of an integer type, found {labels.dtype}")
        if not 0 < lengths[0] == lengths[1] == lengths[2]:
            raise DataError(f"{found}: expected as many times, units and labels, at least one, found {lengths}")
        self.labels = torch.from_numpy(labels.astype("int64"))
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.classes:
            raise DataError(
                f"{found}: expected labels from 0 to {self.classes - 1}, "
                f"found {int(self.labels.min())} to {int(self.labels.max())}"
            )

    def _read(self, index: int) -> UnitEvents:
        with self._file() as file:
            seconds, units = file[_TIMES][index], file[_UNITS][index]
        if seconds.shape != units.shape or seconds.dtype.kind != "f" or units.dtype.kind not in "iu":
            raise DataError(
                f"{self.path}: expected as many times (floating point) as units (integers) in sample {index}, "
                f"found {len(seconds)} of {seconds.dtype} and {len(units)} of {units.dtype}"
            )
        time = torch.from_numpy(seconds.astype("float64")) * 1e6
        unit = torch.from_numpy(units.astype("int64"))
        if not (time.isfinite() & (time >= 0)).all():
            raise DataError(f"{self.path}: expected finite times from 0 on in sample {index}, found others")
        if not ((unit >= 0) & (unit < self.units)).all():
            raise DataError(
                f"{self.path}: expected units from 0 to {self.units - 1} in sample {index}, found up to {unit.max()}"
            )
        return UnitEvents(time.round().long(), unit)

    @contextmanager
    def _file(self) -> Iterator[Any]:
        """The open file; opened anew in each access, which lets the workers of a `DataLoader` read too."""
        h5py = optional_module("h5py", "events")
        try:
            with h5py.File(self.path if self._content is None else io.BytesIO(self._content), "r") as file:
                yield file
        except DataError:
            raise
        except Exception as error:  # h5py names no set of exceptions
            raise DataError(f"{self.path}: expected an HDF5 file, found a damaged or foreign one ({error})") from error
