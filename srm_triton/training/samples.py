"""Training and test samples: tensors, or any data set of PyTorch, checked once."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from srm_triton.checks import as_number, check_number
from srm_triton.data import LabelledImages


class Samples:
    """Inputs with their classes.

    Args:
        inputs: a tensor [samples, ...], or a data set of (input, class), which is read one by one.
        labels: integers [samples]; None for those that the data set has as `labels` or `targets`, or else gives.
        name: what errors call them.
        workers: processes that read a data set, ≥ 0.

    Raises:
        TypeError: for inputs that are no numbers, or labels that are no integers.
        ValueError: if there are none, as many inputs as labels are not given, or an input is not finite; of a data set
            the latter shows when it is read.
    """

    def __init__(self, inputs: Any, labels: Any = None, *, name: str = "train", workers: int = 0) -> None:
        self.name, self.workers = name, check_number("workers", workers, 0, whole=True)
        self.inputs: Tensor | Dataset[Any] = inputs.float() if isinstance(inputs, Tensor) else inputs
        if not len(inputs):
            raise ValueError(f"{name} must have at least one sample, got none")
        if labels is None:
            labels = getattr(inputs, "labels", getattr(inputs, "targets", None))
            labels = [inputs[i][1] for i in range(len(inputs))] if labels is None else labels
        self.labels = torch.as_tensor([*map(as_number, labels)] if isinstance(labels, list) else labels)
        if self.labels.is_floating_point() or self.labels.is_complex() or self.labels.dtype == torch.bool:
            raise TypeError(f"labels of {name} must be integers, got {self.labels.dtype}")
        if self.labels.shape != (len(inputs),):
            raise ValueError(f"labels of {name} must have the shape [{len(inputs)}], got {list(self.labels.shape)}")
        self.labels = self.labels.long()
        if isinstance(self.inputs, Tensor):
            self._check_finite(self.inputs, range(len(self.inputs)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an input."""
        first = self.inputs[0] if isinstance(self.inputs, Tensor) else self.inputs[0][0]
        return tuple(first.shape)

    def part(self, indices: Tensor) -> "Samples":
        """Some of the samples."""
        tensor = isinstance(self.inputs, Tensor)
        inputs = self.inputs[indices] if tensor else Subset(self.inputs, indices.tolist())  # type: ignore[arg-type]
        return Samples(inputs, self.labels[indices], name=self.name, workers=self.workers)

    def to(self, device: torch.device) -> "Samples":
        """The same on a device, if they are tensors."""
        if isinstance(self.inputs, Tensor):
            self.inputs, self.labels = self.inputs.to(device), self.labels.to(device)
        return self

    def batches(self, indices: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of each batch, on a device."""
        if isinstance(self.inputs, Tensor):
            for batch in indices:
                batch = batch.to(self.inputs.device)
                yield self.inputs[batch], self.labels[batch]
            return
        lists = [batch.tolist() for batch in indices]
        seeds = torch.Generator().manual_seed(torch.initial_seed())  # of workers; without drawing from that of others
        loader = DataLoader(self.inputs, batch_sampler=lists, num_workers=self.workers, generator=seeds)
        for numbers, (inputs, _) in zip(lists, loader, strict=True):
            inputs = torch.as_tensor(inputs).float()
            self._check_finite(inputs, numbers)
            yield inputs.to(device), self.labels[numbers].to(device)

    def checksum(self) -> int:
        """A CRC-32 that tells other samples from the same; of a data set, by its labels and first input."""
        inputs = self.inputs if isinstance(self.inputs, Tensor) else torch.as_tensor(self.inputs[0][0]).float()
        shapes = zlib.crc32(repr((list(inputs.shape), len(self))).encode())
        for tensor in (inputs, self.labels):
            shapes = zlib.crc32(tensor.cpu().contiguous().numpy().data, shapes)
        return shapes

    def _check_finite(self, inputs: Tensor, numbers: Sequence[int]) -> None:
        bad = ~inputs.flatten(1).isfinite().all(1)
        if bad.any():
            place = int(bad.nonzero()[0])
            value = inputs[place][~inputs[place].isfinite()][0]
            raise ValueError(
                f"{self.name} must hold finite inputs, got {float(value)} in sample {numbers[place]} "
                f"({int(bad.sum())} samples of {len(inputs)} hold such values)"
            )


class TrainingData(NamedTuple):
    """What a run trains and is tested with; `training_data` makes and checks it."""

    train: Samples
    test: Samples
    classes: int
    over_time: bool
    """Whether inputs are sequences, [time, ...], rather than constant in time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an input at one step, as a network takes it: (features,) or (channels, height, width)."""
        shape = self.train.shape[1:] if self.over_time else self.train.shape
        return (1, *shape) if len(shape) == 2 else shape

    def checksum(self) -> int:
        """A number that tells other data from the same."""
        return zlib.crc32(repr((self.train.checksum(), self.test.checksum(), self.classes)).encode())


def training_data(
    train: Any, test: Any = None, *, classes: int | None = None, over_time: bool | None = None, workers: int = 0
) -> TrainingData:
    """Makes the data of a run.

    Args:
        train: `LabelledImages`, or the training samples: a pair of tensors (inputs, labels) or a data set.
        test: the test samples, likewise; None with `LabelledImages`.
        classes: their number; None for what the data set says, or as many as the training labels say.
        over_time: whether inputs are sequences; None for yes with data sets, no with tensors.
        workers: processes that read data sets.

    Raises:
        TypeError: as `Samples`, or for a number of classes of another type.
        ValueError: as `Samples`; for a number of classes below 1, test inputs of another shape, labels out of range, a
            class without a training sample, or inputs of no known shape.

    Example:
        >>> images, labels = torch.rand(20, 8, 8), torch.arange(20) % 10
        >>> training_data((images, labels), (images, labels)).classes
        10
    """
    if isinstance(train, LabelledImages):
        classes = train.classes
        train, test = (train.train_images, train.train_labels), (train.test_images, train.test_labels)
    given = getattr(train, "classes", None)
    of_tensors = isinstance(train, tuple)
    parts = [
        Samples(*(part if isinstance(part, tuple) else (part,)), name=name, workers=workers)
        for name, part in (("train", train), ("test", test))
    ]
    if classes is None:
        classes = int(parts[0].labels.max()) + 1 if given is None else as_number(given)
        classes = classes if isinstance(classes, int) else len(classes)
    classes = check_number("classes", classes, 1, whole=True)
    data = TrainingData(parts[0], parts[1], classes, not of_tensors if over_time is None else over_time)
    if data.test.shape != data.train.shape:
        raise ValueError(f"test must have inputs of the shape {list(data.train.shape)}, got {list(data.test.shape)}")
    if len(data.shape) not in (1, 3):
        raise ValueError(
            "train must have inputs [features], [height, width] or [channels, height, width]"
            f"{', with time before them' if data.over_time else ''}, got {list(data.train.shape)}"
        )
    for part in parts:
        out = ((part.labels < 0) | (part.labels >= classes)).nonzero().flatten().tolist()
        if out:
            raise ValueError(
                f"labels of {part.name} must lie in 0 … {classes - 1}, "
                f"got {int(part.labels[out[0]])} in sample {out[0]}"
            )
    missing = sorted(set(range(classes)) - set(data.train.labels.unique().tolist()))
    if missing:
        raise ValueError(f"train must have samples of each of {classes} classes, got none of {missing[:10]}")
    return data
