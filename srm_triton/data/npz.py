"""Images in a NumPy archive."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from srm_triton.data.files import DataError, optional_module
from srm_triton.data.labelled_images import LabelledImages, Samples, join_parts

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAMES = (
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("train_images", "train_labels"), ("test_images", "test_labels")),
)


def load_npz(path: str | Path, *, classes: int | None = None) -> LabelledImages:
    """Loads images from a NumPy archive, such as those of Keras and of MedMNIST.

    Args:
        path: a file ``.npz`` with the arrays ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or ``train_images``,
            ``train_labels``, ``test_images`` and ``test_labels``; others are left alone. Images are [samples, height,
            width], or have 1 or 3 channels as their second or their last axis. Those of uint8 or uint16 are divided by
            255 or 65535; floating-point ones are taken as they are. Labels are [samples] or [samples, 1], of any
            integer type.
        classes: the number of classes; None stands for as many as the training labels say. Labels may begin with 0 or
            with 1.

    Raises:
        ModuleNotFoundError: without NumPy.
        OSError: if the file cannot be read.
        DataError: if it is damaged or no such archive, or holds Python objects (pickles, which are not read), other
            arrays, shapes or types, or a value that is not finite.
    """
    path = Path(path)
    arrays = _read(path)
    names = next((names for names in _NAMES if arrays.keys() >= {*names[0], *names[1]}), None)
    if names is None:
        allowed = " or ".join(", ".join((*train, *test)) for train, test in _NAMES)
        raise DataError(f"{path}: expected the arrays {allowed}, found {', '.join(arrays) or 'none'}")
    (train_images, train_labels), (test_images, test_labels) = names
    train = _samples(path, arrays, train_images, train_labels)
    return join_parts(train, _samples(path, arrays, test_images, test_labels), classes)


def _read(path: Path) -> "dict[str, NDArray[Any]]":
    np = optional_module("numpy", "demo")
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                wanted = {name for parts in _NAMES for part in parts for name in part}
                return {name: np.asarray(archive[name]) for name in archive.files if name in wanted}
        except Exception as error:  # NumPy names no set of exceptions
            raise DataError(
                f"{path}: expected a NumPy archive without pickles, found another file ({error})"
            ) from error


def _samples(path: Path, arrays: "dict[str, NDArray[Any]]", images: str, labels: str) -> Samples:
    sources = f"{path}, {images}", f"{path}, {labels}"
    return Samples(_images(arrays[images], sources[0]), _labels(arrays[labels], sources[1]), *sources)


def _images(array: "NDArray[Any]", source: str) -> Tensor:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if not (kind == "f" or (kind == "u" and size <= 2)):
        raise DataError(f"{source}: expected images of uint8, uint16 or floating point, found {array.dtype}")
    images = torch.from_numpy(array.astype("float32"))
    if kind == "u":
        images /= 2 ** (8 * size) - 1
    elif not images.isfinite().all():
        raise DataError(f"{source}: expected finite values, found NaN or infinite ones")
    if images.dim() == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.movedim(3, 1).contiguous()
    if images.dim() == 4 and images.shape[1] == 1:
        images = images.squeeze(1)
    if 0 in images.shape or not (images.dim() == 3 or (images.dim() == 4 and images.shape[1] == 3)):
        raise DataError(f"{source}: expected [samples, height, width] or 1 or 3 channels, found {list(array.shape)}")
    return images


def _labels(array: "NDArray[Any]", source: str) -> Tensor:
    if array.dtype.kind not in "iu":
        raise DataError(f"{source}: expected labels of an integer type, found {array.dtype}")
    if array.ndim not in (1, 2) or array.shape[1:] not in ((), (1,)):
        raise DataError(f"{source}: expected labels of the shape [samples], found {list(array.shape)}")
    if array.size and array.max() >= 2**63:
        raise DataError(f"{source}: expected labels below 2**63, found {array.max()}")
    return torch.from_numpy(array.astype("int64")).flatten()
