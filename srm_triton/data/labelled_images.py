"""Images with their classes: what every loader of images returns, and what it checks."""

from itertools import islice
from typing import NamedTuple

from torch import Tensor

from srm_triton.checks import check_number
from srm_triton.data.files import DataError


class LabelledImages(NamedTuple):
    """Images with their classes, split into training and test samples."""

    train_images: Tensor
    """float32 [samples, height, width] or [samples, channels, height, width]; 0 … 1 where the file holds integers."""
    train_labels: Tensor
    """int64 [samples], each in 0 … classes − 1."""
    test_images: Tensor
    """As `train_images`."""
    test_labels: Tensor
    """As `train_labels`."""
    classes: int
    """The number of classes; each has a training sample."""
    class_names: tuple[str, ...] = ()
    """What the classes are called, where the data say so."""


class Samples(NamedTuple):
    """One part of a data set as its files hold it, and where it stands."""

    images: Tensor
    labels: Tensor
    images_source: str
    labels_source: str


def join_parts(train: Samples, test: Samples, classes: int | None) -> LabelledImages:
    """Checks the two parts of a data set, and counts its classes from 0.

    Args:
        train: the training samples.
        test: the test samples.
        classes: the number of classes; None stands for as many as the training labels say.

    Raises:
        TypeError: for a number of classes of another type.
        ValueError: for one below 1.
        DataError: where images and labels, or the two parts, do not belong together; for a label out of range and for a
            class without a training sample.
    """
    for part in (train, test):
        if len(part.images) != len(part.labels):
            raise DataError(
                f"{part.labels_source}: expected {len(part.images)} labels, as many as there are images in "
                f"{part.images_source}, found {len(part.labels)}"
            )
        if not len(part.labels):
            raise DataError(f"{part.images_source}: expected at least one sample, found none")
    if test.images.shape[1:] != train.images.shape[1:]:
        raise DataError(
            f"{test.images_source}: expected images of the shape {list(train.images.shape[1:])} as in "
            f"{train.images_source}, found {list(test.images.shape[1:])}"
        )
    if classes is not None:
        classes = check_number("classes", classes, 1, whole=True)
    present = train.labels.unique().tolist()
    first = 1 if present[0] == 1 else 0  # some data sets count their classes from 1
    count = classes or present[-1] - first + 1
    for part in (train, test):
        for label in (int(part.labels.min()), int(part.labels.max())):
            if not first <= label < first + count:
                raise DataError(
                    f"{part.labels_source}: expected labels from {first} to {first + count - 1}, found {label}"
                )
    if len(present) < count:
        known = set(present)
        missing = islice((str(label) for label in range(first, first + count) if label not in known), 10)
        raise DataError(
            f"{train.labels_source}: expected training samples of each of {count} classes, found none with the label "
            f"{', '.join(missing)}{', …' if count - len(present) > 10 else ''}"
        )
    return LabelledImages(train.images, train.labels - first, test.images, test.labels - first, count)
