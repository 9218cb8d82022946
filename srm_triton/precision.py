"""The precision of what PyTorch's own products compute for an operation."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which products keep the precision of their factors, on the tensor's device."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else nullcontext()


def autocast_of(tensor: Tensor) -> torch.dtype | None:
    """What autocast converts the factors of products on the tensor's device to, where it is on."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) else None


def as_autocast(tensor: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """A context with the autocast that `autocast_of` found."""
    if dtype is None:
        return without_autocast(tensor)
    return torch.autocast(tensor.device.type, dtype, cache_enabled=False)
