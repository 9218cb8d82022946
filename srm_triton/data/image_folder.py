"""A folder of images, in a folder for each class."""

from pathlib import Path

import torch
from torch import Tensor

from srm_triton.checks import check_number
from srm_triton.data.files import DataError, optional_module
from srm_triton.data.labelled_images import LabelledImages
from srm_triton.data.split import stratified_split
from srm_triton.images.files import read_image

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def load_image_folder(folder: str | Path, *, test_fraction: float = 0.2, seed: int = 0) -> LabelledImages:
    """Loads images that lie in a folder for each class.

    Classes are numbered in the order of their names, or of their numbers if all are numbers. Images of 8 or 16 bits are
    divided by 255 or 65535. If some are coloured and some grey, all get three channels. Files with other endings than
    those of images, and whatever begins with a dot, are left alone.

    Args:
        folder: holds ``train/<class>/<image>`` and ``test/<class>/<image>``, or only ``<class>/<image>``.
        test_fraction: of the latter, the part of the images taken at random for testing, each class in proportion;
            above 0, below 1.
        seed: of that choice, ≥ 0.

    Raises:
        ModuleNotFoundError: without Pillow.
        FileNotFoundError: if there is no such folder.
        TypeError: for a fraction or seed of another type.
        ValueError: for a fraction or seed out of range, or a fraction that leaves a class or part no image.
        DataError: if a class has no image, the classes for testing are not those for training, a file is no image or
            damaged, an image has another size than the first, or is transparent in places.
    """
    optional_module("PIL", "demo")
    test_fraction = check_number("test_fraction", test_fraction, 0, above=True)
    seed = check_number("seed", seed, 0, whole=True)
    if test_fraction >= 1:
        raise ValueError(f"test_fraction must be below 1, got {test_fraction}")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder, found none")
    if (folder / "train").is_dir() != (folder / "test").is_dir():
        raise DataError(f"{folder}: expected both folders train and test, or neither, found one")
    given = (folder / "train").is_dir()
    parts = [_files_of_classes(folder / part) for part in (("train", "test") if given else (".",))]
    names = tuple(parts[0])
    if other := set(names) ^ set(parts[-1]):
        raise DataError(f"{folder}: expected the same classes in train and test, found {min(other)} in one only")
    files = [(path, label) for part in parts for label, name in enumerate(names) for path in part[name]]
    labels = torch.tensor([label for _, label in files])
    if given:
        train, test = torch.arange(len(files)).tensor_split([sum(map(len, parts[0].values()))])
    else:
        try:
            train, test = stratified_split(labels, round(test_fraction * len(files)), seed=seed)
        except ValueError as error:
            raise ValueError(
                f"test_fraction must leave each class and part an image, got {test_fraction} of {len(files)} images"
            ) from error
    images = _load([path for path, _ in files])
    return LabelledImages(images[train], labels[train], images[test], labels[test], len(names), names)


def _files_of_classes(folder: Path) -> dict[str, list[Path]]:
    names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not names:
        raise DataError(f"{folder}: expected a folder for each class, found none")
    names.sort(key=(lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else None)
    files = {
        name: sorted(
            path
            for path in (folder / name).iterdir()
            if path.suffix.lower() in _ENDINGS and not path.name.startswith(".") and path.is_file()
        )
        for name in names
    }
    if empty := [name for name in names if not files[name]]:
        raise DataError(f"{folder / empty[0]}: expected at least one image of the class, found none")
    return files


def _load(paths: list[Path]) -> Tensor:
    images = [_read(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape[-2:] != images[0].shape[-2:]:
            expected, found = (" by ".join(map(str, tensor.shape[-2:])) for tensor in (images[0], image))
            raise DataError(f"{path}: expected {expected} pixels as in {paths[0]}, found {found}")
    if len({image.dim() for image in images}) == 2:
        images = [image if image.dim() == 3 else image.expand(3, -1, -1) for image in images]
    return torch.stack(images)


def _read(path: Path) -> Tensor:
    try:
        file = read_image(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: expected an image, found a damaged or foreign file ({error})") from error
    if file.opacity is not None and bool((file.opacity < 255).any()):
        raise DataError(f"{path}: expected an opaque image, found transparent pixels")
    pixels = file.pixels.float() / (65535 if file.pixels.dtype == torch.uint16 else 255)
    return pixels.squeeze(0)
