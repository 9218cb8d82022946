"""Argument checks: each error names the argument, what was given and what is allowed."""

import operator
import sys
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from srm_triton.functions import check_plain, traced
from srm_triton.kernels.layout import accumulator_dtype

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_tensor(name: str, value: Any, axes: str | None = None, *, events: bool = False) -> None:
    """Checks that `value` is a floating-point tensor on a supported device, of the rank that `axes` spells out.

    Args:
        name: the argument's name.
        value: what was given.
        axes: the allowed shape in words, such as ``"[batch, time, in_features]"``; its commas give the rank, and a
            final ``...`` stands for any number of axes. None allows any rank.
        events: whether bool and integers are allowed too.

    Raises:
        TypeError: for anything but a tensor of a supported floating-point dtype.
        ValueError: for another rank or device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    check_plain(name, value)
    if value.dtype not in FLOATING and not (events and not value.dtype.is_floating_point and not value.is_complex()):
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


def check_held(name: str, value: Tensor, reference_name: str, reference: Tensor) -> None:
    """Checks that the dtype of `reference` holds what that of `value` does, and that they are on one device.

    Raises:
        TypeError: if it does not.
        ValueError: if the devices differ.
    """
    dtype = reference.dtype
    if torch.promote_types(value.dtype, dtype) != dtype:
        raise TypeError(
            f"{name} must have the dtype of {reference_name}, {dtype}, or a narrower one, got {value.dtype}"
        )
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


def as_number(value: Any) -> Any:
    """Python's int or float of what stands for a number, by `operator.index` or `numbers.Real`; all else as it is.

    Tensors and NumPy's arrays of one element stand for it. Bool is no number, whoever made it.
    """
    if type(value) in (int, float):  # first, as compiled code knows no abstract types
        return value
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (RuntimeError, ValueError):  # several elements, or one that cannot be looked at
            return value
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        real = isinstance(value, Real)
    try:
        return float(value) if real else value
    except OverflowError:  # a fraction of huge numbers
        return value


def check_number(name: str, value: Any, smallest: float, *, whole: bool = False, above: bool = False) -> Any:
    """Checks that `value` is a finite number, or with `whole` an int64, at least `smallest` (with `above`, more).

    Returns:
        Python's int or float of it: any kind of number is taken, see `as_number`.

    Raises:
        TypeError: for another type.
        ValueError: for another value, or a tensor that requires a gradient, which it would not receive.
    """
    number: Any = as_number(value)
    kind: Any = int if whole else Real
    if isinstance(number, bool) or not isinstance(number, kind):
        raise TypeError(
            f"{name} must be {'an int' if whole else 'a number'}, got {shown(value)} of type {type(value).__name__}"
        )
    largest = 2**63 - 1 if whole else sys.float_info.max
    if not max(smallest, -largest) <= number <= largest or (above and number == smallest):
        upper = "below 2**63" if whole and number > largest else "finite"
        raise ValueError(f"{name} must be {upper} and {'>' if above else '≥'} {smallest}, got {shown(number)}")
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} must not require a gradient, which it would not receive; pass {name}.item()")
    return number


def shown(value: Any) -> str:
    """A value as errors show it, in one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}…"


def check_option(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """Checks that `value` is one of those allowed, and of their type, and returns that one.

    Raises:
        ValueError: if it is not.
    """
    kind = type(allowed[0])
    option = as_number(value) if kind is int else value
    if not isinstance(option, kind) or (isinstance(option, bool) and kind is not bool) or option not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {shown(value)}")
    return option


def check_sizes(name: str, value: Any, smallest: int, axes: tuple[str, ...] = ("height", "width")) -> tuple[int, ...]:
    """Returns an int, or a tuple, list or array of one for each axis, as a tuple of Python's ints.

    Raises:
        TypeError: for anything else.
        ValueError: for an int below `smallest`.
    """
    sizes = as_number(value)
    if isinstance(sizes, int):
        sizes = (sizes,) * len(axes)
    elif hasattr(sizes, "tolist"):
        sizes = sizes.tolist()
    if not isinstance(sizes, (tuple, list)) or len(sizes) != len(axes):
        raise TypeError(f"{name} must be an int or a tuple of them ({', '.join(axes)}), got {shown(value)}")
    return tuple(check_number(name, size, smallest, whole=True) for size in sizes)


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
