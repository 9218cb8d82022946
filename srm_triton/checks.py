"""Argument checks: each error names the argument, what was given and what is allowed."""

import math
from typing import Any

import torch
from torch import Tensor

from srm_triton.functions import check_plain, traced
from srm_triton.kernels.layout import accumulator_dtype

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_tensor(name: str, value: Any, axes: str | None = None) -> None:
    """Checks that `value` is a floating-point tensor on a supported device, of the rank that `axes` spells out.

    Args:
        name: the argument's name.
        value: what was given.
        axes: the allowed shape in words, such as ``"[batch, time, in_features]"``; its commas give the rank, and a
            final ``...`` stands for any number of axes. None allows any rank.

    Raises:
        TypeError: for anything but a tensor of a supported floating-point dtype.
        ValueError: for another rank or device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    check_plain(name, value)
    if value.dtype not in FLOATING:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise TypeError(f"{name} must have one of the dtypes {allowed}, got {str(value.dtype).removeprefix('torch.')}")
    if value.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got one of {value.layout}")
    if value.device.type not in ("cpu", "cuda", "meta"):
        raise ValueError(f"{name} must be on a cpu or cuda (NVIDIA or ROCm) device, got {value.device}")
    if axes is not None:
        rank = axes.count(",") + 1
        fits = value.dim() >= rank - 1 if axes.endswith("...]") else value.dim() == rank
        if not fits:
            raise ValueError(f"{name} must have the shape {axes}, got {list(value.shape)}")


def check_same(name: str, value: Tensor, reference_name: str, reference: Tensor) -> None:
    """Checks that two tensors agree in dtype and device.

    Raises:
        TypeError: if the dtypes differ.
        ValueError: if the devices differ.
    """
    if value.dtype != reference.dtype:
        raise TypeError(f"{name} must have the dtype of {reference_name}, {reference.dtype}, got {value.dtype}")
    if value.device != reference.device:
        raise ValueError(f"{name} must be on the device of {reference_name}, {reference.device}, got {value.device}")


def check_goes_with(name: str, value: Tensor, reference_name: str, reference: Tensor) -> None:
    """Checks that `value` has the dtype of `reference` or that in which it is computed, and its device.

    Raises:
        TypeError: for another dtype.
        ValueError: for another device.
    """
    if value.dtype not in (reference.dtype, accumulator_dtype(reference.dtype)):
        allowed = " or ".join(dict.fromkeys(map(str, (reference.dtype, accumulator_dtype(reference.dtype)))))
        raise TypeError(
            f"{name} must have the dtype {allowed} ({reference_name} are {reference.dtype}), got {value.dtype}"
        )
    if value.device != reference.device:
        raise ValueError(f"{name} must be on the device of {reference_name}, {reference.device}, got {value.device}")


def check_size(name: str, value: Tensor, axis: int, size: int, meaning: str) -> None:
    """Checks the length of one axis.

    Raises:
        ValueError: if it differs from `size`; `meaning` says where the allowed size comes from.
    """
    if value.shape[axis] != size:
        raise ValueError(f"{name} must have {size} entries on axis {axis} ({meaning}), got {list(value.shape)}")


def check_number(name: str, value: Any, smallest: float, *, whole: bool = False, above: bool = False) -> None:
    """Checks that `value` is a finite number, or with `whole` an int64, at least `smallest` (with `above`, more).

    Raises:
        TypeError: for another type.
        ValueError: for another value.
    """
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TypeError(
            f"{name} must be {'an int' if whole else 'a number'}, got {value!r} of type {type(value).__name__}"
        )
    if not smallest <= value < (2**63 if whole else math.inf) or (above and value == smallest):
        largest = "below 2**63" if whole and value >= 2**63 else "finite"
        raise ValueError(f"{name} must be {largest} and {'>' if above else '≥'} {smallest}, got {value}")


def check_option(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Checks that `value` is one of those allowed, and of their type.

    Raises:
        ValueError: if it is not.
    """
    kind = type(allowed[0])
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def check_sizes(name: str, value: Any, smallest: int, axes: tuple[str, ...] = ("height", "width")) -> tuple[int, ...]:
    """Returns an int, or a tuple of one for each axis, as such a tuple.

    Raises:
        TypeError: for anything else.
        ValueError: for an int below `smallest`.
    """
    sizes = (value,) * len(axes) if isinstance(value, int) else value
    if not isinstance(sizes, (tuple, list)) or len(sizes) != len(axes):
        raise TypeError(f"{name} must be an int or a tuple of them ({', '.join(axes)}), got {value!r}")
    for size in sizes:
        check_number(name, size, smallest, whole=True)
    return tuple(sizes)


def check_entries(name: str, value: Tensor, allowed: Tensor, meaning: str) -> None:
    """Checks that every entry is allowed; `meaning` says which are. Compiled code and `torch.func` leave that out.

    Raises:
        ValueError: for the first entry that is not.
    """
    if value.is_meta or traced() or allowed.all():
        return
    first = (~allowed).nonzero()[0].tolist()
    raise ValueError(
        f"{name} must {meaning}, got {value[tuple(first)].item():g} at {first} "
        f"({int((~allowed).sum())} of {value.numel()} are such)"
    )


def check_integers(name: str, value: Any) -> None:
    """Checks that `value` is a tensor of integers, of any of their dtypes.

    Raises:
        TypeError: for anything else, bool too.
    """
    dtype = value.dtype if isinstance(value, Tensor) else None
    if dtype is None or dtype == torch.bool or dtype.is_floating_point or dtype.is_complex:
        raise TypeError(f"{name} must be a tensor of integers, got {dtype or type(value).__name__}")


def check_labels(labels: Any, reference_name: str, reference: Tensor, batch: int, classes: int) -> Tensor:
    """Checks that `labels` are integers [batch], in 0 … classes − 1, on the device of `reference`, and returns int64.

    On a GPU, in compiled code and within transforms of `torch.func`, the range is left to what indexes by them.

    Raises:
        TypeError: for anything but a tensor of integers.
        ValueError: for another shape or device, or a label out of range.
    """
    check_integers("labels", labels)
    if labels.shape != (batch,):
        raise ValueError(f"labels must have the shape [batch], here [{batch}], got {list(labels.shape)}")
    if labels.device != reference.device:
        raise ValueError(f"labels must be on the device of {reference_name}, {reference.device}, got {labels.device}")
    labels = labels.to(torch.int64)
    if labels.device.type == "cpu" and batch and not traced():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(f"labels must lie in 0 … {classes - 1}, got values from {low} to {high}")
    return labels


def mark_labels(labels: Tensor, classes: int) -> Tensor:
    """Returns a mask, [batch, classes], of each sample's label; PyTorch raises an error for a label out of range."""
    marks = torch.zeros(labels.shape[0], classes, dtype=torch.bool, device=labels.device)
    return marks.scatter(1, labels[:, None], True)


def time_axes(batch_first: bool, rest: str) -> str:
    """Returns the shape in words that `check_tensor` takes, for either order of batch and time."""
    return f"[batch, time, {rest}]" if batch_first else f"[time, batch, {rest}]"
