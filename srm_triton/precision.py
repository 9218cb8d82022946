"""The precision of what PyTorch's own products compute for an operation."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which products keep the precision of their factors, on the tensor's device."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else nullcontext()
