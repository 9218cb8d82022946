"""The data that a recipe names."""

from pathlib import Path
from typing import Any

import torch

from srm_triton import data
from srm_triton.training.recipe import Recipe
from srm_triton.training.samples import TrainingData, training_data

# where events of the sets come from: (height, width) or (units,)
_EVENTS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "n-mnist": (data.NMNIST, (34, 34)),
    "dvs-gesture": (data.DVSGesture, (128, 128)),
    "shd": (data.SHD, (data.SHD.units,)),
}
_TORCHVISION = {"mnist": "MNIST", "kmnist": "KMNIST"}
"""Its folders for what is kept as Fashion-MNIST is."""


def load_data(recipe: Recipe) -> TrainingData:
    """Loads what a recipe trains with.

    Raises:
        OSError: if a file cannot be read.
        ValueError: for a file that holds something else, and as `training_data`.
        ModuleNotFoundError: as the loaders of `srm_triton.data`.
    """
    source = recipe.data
    if source.name == "digits":
        return training_data(data.load_digits())
    if source.name == "fashion-mnist":
        return training_data(data.load_fashion_mnist(source.folder or data.FASHION_MNIST_FOLDER))
    if source.name in _TORCHVISION and not (Path(source.folder) / source.name).exists():
        folder = Path(source.folder or source.name)
        inner = folder / _TORCHVISION[source.name]
        return training_data(data.load_idx(inner if inner.is_dir() else folder, classes=10))
    if source.name not in _EVENTS:
        return training_data(data.load_images(Path(source.folder) / source.name))
    kind, sensor = _EVENTS[source.name]
    frames = data.Frames(
        recipe.network.steps, sensor, source.frame_size or None, by=source.frames, values=source.values
    )
    parts: list[Any] = [kind(source.folder or source.name, train=train, transform=frames) for train in (True, False)]
    classes = parts[0].classes
    if source.name == "dvs-gesture":  # of which each sample is a part of a large file, slow to read
        parts = [(torch.stack([frames for frames, _ in part]), part.labels) for part in parts]
    return training_data(*parts, classes=classes, over_time=True, workers=source.workers)
