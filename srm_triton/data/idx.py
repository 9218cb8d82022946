"""IDX files, the format of MNIST and of its relatives Fashion-MNIST, Kuzushiji-MNIST and EMNIST.

Source: the description at the foot of http://yann.lecun.com/exdb/mnist. Two zero bytes, the type, the number of axes,
their lengths as big-endian integers of 32 bits, and the values.
"""

import math
import re
import struct
from pathlib import Path

import torch
from torch import Tensor

from srm_triton.checks import check_number
from srm_triton.data.files import DataError, read_bytes
from srm_triton.data.labelled_images import LabelledImages, Samples, join_parts

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts the files."""

_INTEGERS = {0x08: torch.uint8, 0x09: torch.int8, 0x0B: torch.int16, 0x0C: torch.int32}
_NAME = re.compile(r"(?P<data>.*?)-?(?P<part>train|t10k|test)-(?P<kind>images|labels)[.-]idx[13]-\w+(\.gz)?")
_KINDS = [(part, kind) for part in ("train", "test") for kind in ("images", "labels")]


def load_idx(folder: str | Path, *, name: str = "", classes: int | None = None) -> LabelledImages:
    """Loads MNIST, Fashion-MNIST, Kuzushiji-MNIST, a part of EMNIST, or images of any size in the same files.

    EMNIST's images are returned as they lie in its files, rows and columns exchanged.

    Args:
        folder: holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
            ``t10k-labels-idx1-ubyte``, each plain or with the ending ``.gz``; or it holds a folder ``raw`` with them,
            or folders with such a folder, as torchvision makes them. ``test`` may stand for ``t10k`` and ``.idx`` for
            ``-idx``.
        name: what the names begin with if they do not begin with ``train``, such as ``"emnist-letters"``, or else
            torchvision's folder, such as ``"KMNIST"``. May be left out where there is one data set.
        classes: the number of classes; None stands for as many as the training labels say. Labels may begin with 0 or
            with 1, as those of EMNIST's letters do.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a file is not what its name says, or `folder` holds several data sets.
    """
    files = _find(Path(folder), name)
    train, test = (_read_samples(files[part, "images"], files[part, "labels"]) for part in ("train", "test"))
    return join_parts(train, test, classes)


def load_fashion_mnist(folder: str | Path = FASHION_MNIST_FOLDER) -> LabelledImages:
    """Loads Fashion-MNIST (or MNIST, which has the same format): 28×28 pixels, 60000 and 10000 samples, 10 classes.

    Args:
        folder: as for `load_idx`; one that holds a folder ``FashionMNIST`` stands for it.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a file is not what its name says.
    """
    folder = Path(folder)
    inner = folder / "FashionMNIST"
    try:
        return load_idx(inner if inner.is_dir() else folder, classes=10)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; Debian's package dataset-fashion-mnist puts them in {FASHION_MNIST_FOLDER}, "
            "https://github.com/zalandoresearch/fashion-mnist offers them for download"
        ) from error


def read_idx(path: str | Path, rank: int) -> Tensor:
    """Reads an IDX file of integers.

    Args:
        path: the file; one whose name ends in ``.gz`` is unpacked.
        rank: the number of axes that it must have, ≥ 1.

    Returns:
        Its values in the type and the shape that the file states.

    Raises:
        TypeError: for a rank of another type.
        ValueError: for a rank below 1.
        OSError: if the file cannot be read.
        DataError: if it is no such file, shorter or longer than its header says, or a damaged archive.
    """
    rank = check_number("rank", rank, 1, whole=True)
    path = Path(path)
    content = read_bytes(path)
    header = 4 * (1 + rank)
    if len(content) < header:
        raise DataError(f"{path}: expected an IDX header of {header} bytes, found a file of {len(content)} bytes")
    magic, *shape = struct.unpack(f">{1 + rank}I", content[:header])
    if magic not in [code << 8 | rank for code in _INTEGERS]:
        raise DataError(f"{path}: expected the IDX magic number {0x800 | rank:#010x}, found {magic:#010x}")
    dtype = _INTEGERS[magic >> 8]
    expected = header + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise DataError(f"{path}: expected {expected} bytes for the shape {shape}, found {len(content)} bytes")
    if 0 in shape:
        raise DataError(f"{path}: expected at least one sample and pixel, found the shape {shape}")
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header)
    return values.view(-1, dtype.itemsize).flip(1).view(dtype).view(shape)


def sets_of_idx(folder: Path) -> dict[str, dict[tuple[str, str], Path]]:
    """Returns the data sets of a folder: by name, the file of each part (train, test) and kind (images, labels).

    Sets without a name that lie in ``<name>/raw`` have that one.
    """
    inner = [(place.parent.name, place) for place in sorted(folder.glob("*/raw"))]
    for places in ([("", folder)], [("", folder / "raw")], inner):
        found: dict[str, dict[tuple[str, str], Path]] = {}
        for default, place in places:
            for path in sorted(place.iterdir()) if place.is_dir() else ():  # plain ones come before archives
                if (match := _NAME.fullmatch(path.name)) and path.is_file():
                    part = "train" if match["part"] == "train" else "test"
                    found.setdefault(match["data"] or default, {}).setdefault((part, match["kind"]), path)
        if found:
            return found
    return {}


def _find(folder: Path, name: str) -> dict[tuple[str, str], Path]:
    found = sets_of_idx(folder)
    if not name and len(found) > 1:
        raise DataError(f"{folder}: expected one data set, found {', '.join(found)}; choose one by its name")
    files = found.get(name, {}) if name else next(iter(found.values()), {})
    begin, test = (f"{name}-", "test") if name else ("", "t10k")
    ranks = {"images": 3, "labels": 1}
    missing = [
        f"{begin}{'train' if part == 'train' else test}-{kind}-idx{ranks[kind]}-ubyte"
        for part, kind in _KINDS
        if (part, kind) not in files
    ]
    if missing:
        raise FileNotFoundError(f"{folder}: no {', '.join(missing)} (plain or .gz)")
    return files


def _read_samples(images_path: Path, labels_path: Path) -> Samples:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.dtype != torch.uint8:
        raise DataError(f"{images_path}: expected pixels of unsigned bytes, found {images.dtype}")
    return Samples(images / 255, labels.long(), str(images_path), str(labels_path))
