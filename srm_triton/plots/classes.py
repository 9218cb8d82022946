"""Which classes are taken for which."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from srm_triton.checks import check_integers
from srm_triton.plots.style import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def confusion_matrix(
    predictions: Tensor, labels: Tensor, *, names: Sequence[str] | None = None, axes: "Axes | None" = None
) -> "Axes":
    """Draws how often each class, a row, was taken for each class, a column; shades are shares of the row.

    Args:
        predictions: classes from 0, of any integer dtype, [samples].
        labels: the classes that are right, likewise.
        names: of the classes; None for their numbers.
        axes: where to draw; None for a new figure.

    Raises:
        TypeError: for anything but tensors of integers.
        ValueError: for other shapes, no samples, negative classes, or fewer names than classes.
        ModuleNotFoundError: without matplotlib.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2])).get_title()
        '3 of 4 right, 75.0 %'
    """
    for name, values in (("predictions", predictions), ("labels", labels)):
        check_integers(name, values)
        if values.shape != (len(labels),) or not len(labels):
            raise ValueError(f"{name} must have the shape [samples] of labels, at least 1, got {list(values.shape)}")
        if int(values.min()) < 0:
            raise ValueError(f"{name} must be classes from 0 on, got {int(values.min())}")
    found, right = predictions.long().cpu(), labels.long().cpu()
    classes = int(torch.maximum(found, right).max()) + 1
    if names is not None and len(names) < classes:
        raise ValueError(f"names must hold one for each of {classes} classes, got {len(names)}")
    names = [str(number) for number in range(classes)] if names is None else names
    classes = len(names)
    counts = torch.bincount(right * classes + found, minlength=classes**2).reshape(classes, classes)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(12.0, max(4.5, 0.45 * classes + 1.5))
    axes = axes_or_new(axes, side, side)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    if classes > 20:  # for numbers
        axes.figure.colorbar(image, ax=axes, shrink=0.8, label="share of the class")
    else:
        size = 10 if classes <= 12 else 7
        for row, column in counts.nonzero().tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(int(counts[row, column])), ha="center", va="center", color=color, size=size)
    correct = int(counts.diagonal().sum())
    axes.set(title=f"{correct} of {len(right)} right, {correct / len(right):.1%}".replace("%", " %"))
    axes.set(xlabel="taken for class", ylabel="class")
    if classes <= 30:
        longest = max(map(len, names))
        axes.set_xticks(range(classes), names, rotation=90 if longest > 3 else 0)
        axes.set_yticks(range(classes), names)
    return axes
