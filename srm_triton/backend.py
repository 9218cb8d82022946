"""Which implementation runs: PyTorch's dispatcher decides, and one context manager can override it.

On CUDA devices (NVIDIA and ROCm) an operation launches its Triton kernel. On the CPU it runs the eager reference, or a
C version where that was built; the scan's has the same results bit for bit.
`use_backend` overrides the choice to compare them on one machine.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Literal, get_args

import torch

from srm_triton.kernels import native

Backend = Literal["auto", "reference", "native", "triton"]


class _Block:
    """A `use_backend` block that is entered and not yet left."""

    def __init__(self, name: Backend) -> None:
        self.name = name
        self.thread = threading.current_thread()


# Process-wide, like torch.backends' flags: torch.compile guards on a module's globals, so compiled models follow it.
_override: Backend = "auto"
_blocks = [_Block("auto")]  # those not yet left, in the order they were entered; the first stands for none
_blocks_lock = threading.RLock()  # reentrant: the garbage collector may end a block anywhere


@contextlib.contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Chooses the implementation of every srm_triton operation within a `with` block.

    The choice is made when an operation runs forward; its backward uses the same one. It holds for the whole process,
    so a second thread that asks for an override at the same time gets an error. Blocks of coroutines and generators may
    end in any order: of those that have not, the one entered last counts.

    Args:
        name: ``"auto"``, what is fastest: Triton for GPU tensors, for CPU tensors the C library where it was built and
            serves the operation, else the eager reference; ``"reference"``; ``"native"``, the C library for CPU
            tensors (operations without a C version run their reference); or ``"triton"``. Triton on CPU tensors needs
            Triton's interpreter: the environment variable ``TRITON_INTERPRET=1``, set before triton is first imported.

    Raises:
        ValueError: if `name` is none of these.
        RuntimeError: if another thread is inside a `use_backend` block.

    Example:
        >>> import torch, srm_triton
        >>> with srm_triton.use_backend("reference"):
        ...     spikes = srm_triton.srm_scan(torch.ones(1, 4, 2))
    """
    global _override
    if name not in get_args(Backend):
        raise ValueError(f"name must be one of {get_args(Backend)}, got {name!r}")
    block = _Block(name)
    with _blocks_lock:
        if len(_blocks) > 1 and _blocks[-1].thread is not block.thread:
            raise RuntimeError("use_backend is active in another thread; it holds for the whole process")
        _blocks.append(block)
        _override = _blocks[-1].name
    try:
        yield
    finally:
        with _blocks_lock:
            _blocks.remove(block)
            _override = _blocks[-1].name


def requested_backend() -> Backend:
    """Returns the override in force, ``"auto"`` outside `use_backend`."""
    return _override


def resolve_backend(
    device: torch.device, requested: str, *, has_native: bool = False
) -> Literal["reference", "native", "triton"]:
    """Returns the implementation that serves a device, given `requested_backend()` at the time of the call.

    Args:
        device: where the tensors are.
        requested: the override in force.
        has_native: whether the operation has a C version.

    Raises:
        RuntimeError: if Triton is asked for on CPU tensors and its kernels are not interpreted, or the C library where
            it was not built or for GPU tensors.
        ValueError: for a device that is neither CPU nor CUDA (which includes ROCm).
    """
    kind = device.type
    if kind not in ("cpu", "cuda", "meta"):
        raise ValueError(f"tensors must be on a cpu or cuda (NVIDIA or ROCm) device, got {device}")
    if requested == "auto":
        return "triton" if kind == "cuda" else "native" if has_native and native.problem() is None else "reference"
    if requested == "triton" and kind == "cpu":
        from srm_triton.kernels import launch

        if not launch.interpreted():
            raise RuntimeError(
                "backend 'triton' runs CPU tensors only in Triton's interpreter: set TRITON_INTERPRET=1 before triton "
                "is first imported, or move the tensors to a GPU"
            )
    if requested == "native":
        if kind == "cuda":
            raise RuntimeError(f"backend 'native' runs CPU tensors only, got tensors on {device}")
        if native.problem() is not None:
            raise RuntimeError(f"backend 'native' is not available: its C library is {native.problem()}")
    if requested == "triton":
        return "triton"
    return "native" if has_native and requested == "native" else "reference"
