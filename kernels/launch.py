"""What the launchers share: scalars, the interpreter and the choice of device."""

import functools
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
from triton import language as tl

_interpreter_lock = threading.RLock()  # Triton's interpreter keeps the running program in globals
MAX_GRID_Y = 65535  # CUDA's limit on the second and third dimension of a grid


@triton.jit
def _probe():
    """Shows how Triton was told to run kernels."""


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, and so on CPU tensors."""
    return not isinstance(_probe, triton.JITFunction)  # its own class would import NumPy


def warp_size() -> int:
    """Threads of a warp of the current device: 64 on most AMD GPUs, else 32."""
    return triton.runtime.driver.active.get_current_target().warp_size


@triton.jit
def convert(values, dtype: tl.constexpr):
    """A tuple of scalars in the type that a kernel computes in."""
    converted = ()
    for i in tl.static_range(len(values)):
        converted = converted + (tl.full((), values[i], dtype),)
    return converted


def scalars(dtype: torch.dtype, values: tuple[float, ...]) -> tuple:
    """Floats as kernel arguments; as Triton passes run-time floats in float32, float64 needs compile-time constants."""
    return tuple(map(tl.constexpr, values)) if dtype == torch.float64 else values


def tells_sizes_apart() -> bool:
    """Whether Triton compiles in of each tensor if it has less than 2 GB, as for AMD."""
    return torch.version.hip is not None


def for_sizes_of(kernel: Any, arguments: Sequence[Any]) -> Any:
    """The kernel, or the one for tensors of any size: all or none are compiled as small, else each makes a variant."""
    if tells_sizes_apart() and any(
        isinstance(argument, torch.Tensor) and argument.untyped_storage().nbytes() >= 2**31 for argument in arguments
    ):
        return _of_any_size(kernel)
    return kernel


@functools.cache
def _of_any_size(kernel: Any) -> Any:
    pointers = kernel.do_not_specialize_on_alignment
    return triton.jit(kernel.fn, do_not_specialize=[*kernel.do_not_specialize, *pointers])


def device_of(tensor: torch.Tensor) -> AbstractContextManager:
    """A context in which Triton launches on the tensor's device and its stream; one thread at a time interprets."""
    return _interpreter_lock if interpreted() else torch.cuda.device_of(tensor)
