"""Launches the C version of the scan, srm_scan.c, which an installation builds where it finds a compiler."""

import ctypes
import functools
import importlib.util
from typing import Any

import torch

from .layout import accumulator_dtype, outer_time_inner

_LARGEST_TILE, _CHUNK = 1024, 32  # neurons and steps, as in srm_scan.c
_SMALLEST_TILE = 256  # shorter rows cost more than idle threads
_PARALLEL_FROM = 1 << 15  # elements, PyTorch's own grain size

_CONSTANTS = "membrane_decay synapse_decay gradient_decay amplitude threshold"
_GRADIENT_CONSTANTS = "rise membrane_slope_limit gradient_slope_limit"


class _Scan(ctypes.Structure):
    """`Scan` of srm_scan.c, field by field."""

    _fields_ = tuple(
        (name, kind)
        for kind, names in (
            (ctypes.c_int64, "outer steps inner tile"),
            (ctypes.c_int64, "current_stride_outer current_stride_time grad_stride_outer grad_stride_time"),
            (ctypes.c_double, f"{_CONSTANTS} {_GRADIENT_CONSTANTS}"),
            (ctypes.c_void_p, "current grad_spikes events"),
            (ctypes.c_void_p, "spikes membrane gradient_trace grad_weight_path grad_time_path scratch"),
            (ctypes.c_longlong, "tiles_taken workers"),
        )
        for name in names.split()
    )


def _path() -> str | None:
    spec = importlib.util.find_spec("srm_triton.kernels._native")
    return None if spec is None else spec.origin


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    path = _path()
    if path is None:
        return "not built: the installation found no C compiler that it can use"
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        return f"cannot be loaded: {error}"


@functools.cache
def _thread_pool() -> Any:
    """The entry to the OpenMP threads that PyTorch has loaded; None where they are of another kind."""
    return getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)


def problem() -> str | None:
    """Why the library cannot serve; None if it can."""
    library = _library()
    return library if isinstance(library, str) else None


def threads() -> int:
    """How many threads a large scan runs on: PyTorch's own, or one where they cannot be joined."""
    return torch.get_num_threads() if _thread_pool() else 1


def forward(
    current: torch.Tensor,
    spikes: torch.Tensor,
    membrane: torch.Tensor | None,
    gradient_trace: torch.Tensor | None,
    time_axis: int,
    constants: tuple[float, ...],
) -> None:
    """Fills `spikes`, and where given `membrane`, `gradient_trace`, all laid out alike; as kernels/srm_scan.py."""
    x = _readable(current, spikes, time_axis)
    results = _writable((spikes, membrane, gradient_trace), x.dtype)
    threads = _number_of_threads(x)
    scan = _Scan(*x.shape, _tile(x, threads), **dict(zip(_CONSTANTS.split(), constants, strict=True)))
    scan.current_stride_outer, scan.current_stride_time, _ = x.stride()
    scan.current = x.data_ptr()
    scan.spikes, scan.membrane, scan.gradient_trace = map(_pointer, results)
    _run("srm_scan_forward", scan, x.dtype, threads)
    _hand_over(results, (spikes, membrane, gradient_trace))


def backward(
    grad_spikes: torch.Tensor,
    current: torch.Tensor,
    events: torch.Tensor | None,
    grad_weight_path: torch.Tensor | None,
    grad_time_path: torch.Tensor | None,
    time_axis: int,
    constants: tuple[float, ...],
    gradient_constants: tuple[float, ...],
) -> None:
    """Fills the gradients that are given, which are laid out alike; as kernels/srm_scan.py."""
    like = grad_weight_path if grad_weight_path is not None else grad_time_path
    x = _readable(current, like, time_axis)
    grad = _readable(grad_spikes, like, time_axis)
    if events is not None:
        events = _readable(events, like, time_axis).contiguous()
    results = _writable((grad_weight_path, grad_time_path), x.dtype)
    threads = _number_of_threads(x)
    chunks = -(-x.shape[1] // _CHUNK)
    scratch = x.new_empty(threads, 2 * _CHUNK + 3 * chunks, _LARGEST_TILE)

    scan = _Scan(*x.shape, _tile(x, threads), **dict(zip(_CONSTANTS.split(), constants, strict=True)))
    scan.rise, scan.membrane_slope_limit, scan.gradient_slope_limit = gradient_constants
    scan.current_stride_outer, scan.current_stride_time, _ = x.stride()
    scan.grad_stride_outer, scan.grad_stride_time, _ = grad.stride()
    scan.current, scan.grad_spikes, scan.events = x.data_ptr(), grad.data_ptr(), _pointer(events)
    scan.grad_weight_path, scan.grad_time_path = map(_pointer, results)
    scan.scratch = scratch.data_ptr()
    _run("srm_scan_backward", scan, x.dtype, threads)
    _hand_over(results, (grad_weight_path, grad_time_path))


def _readable(tensor: torch.Tensor, like: torch.Tensor, time_axis: int) -> torch.Tensor:
    """`tensor` as [outer, time, inner] in float32 or float64, inner with stride 1."""
    viewed = outer_time_inner(tensor, like, time_axis)
    viewed = viewed.to(accumulator_dtype(tensor.dtype))
    return viewed if viewed.stride(2) == 1 or viewed.shape[2] == 1 else viewed.contiguous()


def _writable(tensors: tuple[torch.Tensor | None, ...], dtype: torch.dtype) -> list[torch.Tensor | None]:
    """The tensors themselves where they have the type, else new ones laid out alike."""
    return [t if t is None or t.dtype == dtype else torch.empty_like(t, dtype=dtype) for t in tensors]


def _hand_over(results: list[torch.Tensor | None], tensors: tuple[torch.Tensor | None, ...]) -> None:
    for result, tensor in zip(results, tensors, strict=True):
        if tensor is not None and tensor is not result:
            tensor.copy_(result)


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _number_of_threads(x: torch.Tensor) -> int:
    return threads() if x.numel() >= _PARALLEL_FROM else 1


def _tile(x: torch.Tensor, threads: int) -> int:
    """Neurons to a tile: many, but not so many that threads go without."""
    outer, _, inner = x.shape
    tile = _LARGEST_TILE
    while tile > _SMALLEST_TILE and outer * -(-inner // tile) < threads:
        tile //= 2
    return tile


def _run(stem: str, scan: _Scan, dtype: torch.dtype, threads: int) -> None:
    function = getattr(_library(), f"{stem}_{'double' if dtype == torch.float64 else 'float'}")
    function(ctypes.byref(scan), _thread_pool(), ctypes.c_uint(threads))
