"""Data sets of the demonstration."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts the files."""

IMAGE_SIZES = {"digits": (8, 8), "fashion-mnist": (28, 28)}
"""Height and width of the images of each data set."""

CLASSES = 10
"""The number of classes of each data set."""

_IMAGES, _LABELS = 0x803, 0x801


class DataError(ValueError):
    """A data file holds something else than it should; the message names file, expectation and finding."""


class LabelledImages(NamedTuple):
    """Grey images with their classes, split into training and test samples."""

    train_images: Tensor
    """float32 [samples, height, width], 0 … 1."""
    train_labels: Tensor
    """int64 [samples]."""
    test_images: Tensor
    """As `train_images`."""
    test_labels: Tensor
    """As `train_labels`."""
    classes: int
    """The number of classes; labels are 0 and up, below it."""

    def checksum(self) -> int:
        """A CRC-32 of all samples, which tells other data from the same."""
        checksum = self.classes
        for tensor in self[:4]:
            shaped = repr(list(tensor.shape)).encode()
            checksum = zlib.crc32(tensor.cpu().contiguous().numpy().data, zlib.crc32(shaped, checksum))
        return checksum

    def to(self, device: torch.device) -> "LabelledImages":
        """Returns the same samples on another device."""
        return self._replace(**{name: getattr(self, name).to(device) for name in self._fields[:4]})


def load_digits() -> LabelledImages:
    """Loads the 1797 handwritten digits that scikit-learn contains, 8×8 pixels: 1437 for training, 360 for testing.

    The split is fixed and keeps the proportions of the classes.

    Raises:
        ModuleNotFoundError: without scikit-learn.

    Example:
        >>> load_digits().train_images.shape
        torch.Size([1437, 8, 8])
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).float() / 16
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return LabelledImages(images[train], labels[train], images[test], labels[test], CLASSES)


def load_fashion_mnist(folder: str | Path = FASHION_MNIST_FOLDER) -> LabelledImages:
    """Loads Fashion-MNIST (or MNIST, which has the same format) from IDX files: 28×28 pixels, 60000 and 10000 samples.

    Args:
        folder: holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
            ``t10k-labels-idx1-ubyte``, each plain or with the ending ``.gz``.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a file is not what its name says.
    """
    folder = Path(folder)
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    files = {name: [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()] for name in names}
    if missing := [name for name, paths in files.items() if not paths]:
        raise FileNotFoundError(
            f"{folder}: no {', '.join(missing)} (plain or .gz); Debian's package dataset-fashion-mnist puts them in "
            f"{FASHION_MNIST_FOLDER}, https://github.com/zalandoresearch/fashion-mnist offers them for download"
        )
    train_images, train_labels, test_images, test_labels = (paths[0] for paths in files.values())
    return LabelledImages(*_read_samples(train_images, train_labels), *_read_samples(test_images, test_labels), CLASSES)


def read_idx(path: Path, magic: int) -> Tensor:
    """Reads an IDX file of unsigned bytes.

    Args:
        path: the file; one whose name ends in ``.gz`` is unpacked.
        magic: the number that it must begin with; 0x803 stands for bytes in three dimensions, 0x801 in one.

    Returns:
        Its values, uint8, in the shape that the file states.

    Raises:
        OSError: if the file cannot be read.
        DataError: if it is no such file, shorter or longer than its header says, or a damaged archive.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: expected a complete gzip archive, found a damaged one ({error})") from error
    rank = magic & 0xFF
    header = 4 * (1 + rank)
    if len(content) < header:
        raise DataError(f"{path}: expected an IDX header of {header} bytes, found a file of {len(content)} bytes")
    found, *shape = struct.unpack(f">{1 + rank}I", content[:header])
    if found != magic:
        raise DataError(f"{path}: expected the IDX magic number {magic:#010x}, found {found:#010x}")
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(f"{path}: expected {expected} bytes for the shape {shape}, found {len(content)} bytes")
    if 0 in shape:
        raise DataError(f"{path}: expected at least one sample and pixel, found the shape {shape}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)


def _read_samples(images_path: Path, labels_path: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(images_path, _IMAGES), read_idx(labels_path, _LABELS)
    if images.shape[1:] != IMAGE_SIZES["fashion-mnist"]:
        raise DataError(
            f"{images_path}: expected images of 28 by 28 pixels, found {images.shape[1]} by {images.shape[2]}"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: expected {len(images)} labels, as many as there are images in {images_path.name}, "
            f"found {len(labels)}"
        )
    if labels.max() >= CLASSES:
        raise DataError(f"{labels_path}: expected labels from 0 to {CLASSES - 1}, found {labels.max()}")
    return images.float() / 255, labels.long()
