"""The handwritten digits of scikit-learn."""

import torch

from srm_triton.data.files import optional_module
from srm_triton.data.labelled_images import LabelledImages


def load_digits() -> LabelledImages:
    """Loads the 1797 handwritten digits that scikit-learn contains, 8×8 pixels: 1437 for training, 360 for testing.

    The split is fixed and keeps the proportions of the classes.

    Raises:
        ModuleNotFoundError: without scikit-learn.

    Example:
        >>> load_digits().train_images.shape
        torch.Size([1437, 8, 8])
    """
    digits = optional_module("sklearn.datasets", "demo").load_digits()
    images = torch.from_numpy(digits.images).float() / 16
    labels = torch.from_numpy(digits.target).long()
    split = optional_module("sklearn.model_selection", "demo").train_test_split
    train, test = split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return LabelledImages(images[train], labels[train], images[test], labels[test], classes=10)
