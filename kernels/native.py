"""Launches the C versions, <stem>.c, which an installation builds where it finds a compiler."""

import ctypes
import functools
import importlib.util
from typing import Any

import torch

from .layout import accumulator_dtype, outer_time_inner

_SMALLEST_TILE = 256  # neurons; shorter rows cost more than idle threads
_NARROW = 16  # neurons; shorter rows cost more than copies in which all neurons make one row
_PARALLEL_FROM = 1 << 15  # elements, PyTorch's own grain size
_BANDS = 4  # of images, for each thread: one that starts late takes fewer

_CONSTANTS = "membrane_decay synapse_decay gradient_decay amplitude threshold"
_GRADIENT_CONSTANTS = "rise membrane_slope_limit gradient_slope_limit"


def _fields(*groups: tuple[type, str]) -> list[tuple[str, type]]:
    return [(name, kind) for kind, names in groups for name in names.split()]


class _Scan(ctypes.Structure):
    """`Scan` of srm_scan.c, field by field."""

    _fields_ = _fields(
        (ctypes.c_int64, "outer steps inner tile"),
        (ctypes.c_int64, "current_stride_outer current_stride_time grad_stride_outer grad_stride_time"),
        (ctypes.c_double, f"{_CONSTANTS} {_GRADIENT_CONSTANTS}"),
        (ctypes.c_void_p, "current grad_spikes label_steps"),
        (ctypes.c_void_p, "spikes membrane gradient_trace grad_weight_path grad_time_path scratch"),
        (ctypes.c_longlong, "tiles_taken workers"),
    )


class _Step(ctypes.Structure):
    """`Step` of shrink.c, field by field."""

    _fields_ = _fields(
        (ctypes.c_int64, "samples kinds channels height width band"),
        (ctypes.c_double, "weight relaxation"),
        (ctypes.c_void_p, "estimate image penalty splits target above scratch squares"),
        (ctypes.c_longlong, "bands_taken workers"),
    )


class _Poisson(ctypes.Structure):
    """`Poisson` of poisson.c, field by field."""

    _fields_ = _fields(
        (ctypes.c_int64, "planes channels height columns"),
        (ctypes.c_void_p, "reach decay gain cycle values"),
        (ctypes.c_longlong, "tiles_taken"),
    )


_STRUCTURES = {"srm_scan": _Scan, "shrink": _Step, "poisson": _Poisson}


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
        library = ctypes.CDLL(path)
    except OSError as error:
        return f"cannot be loaded: {error}"
    try:
        same = all(_layout(library, stem)[0] == ctypes.sizeof(kind) for stem, kind in _STRUCTURES.items())
    except ValueError:  # an operation is missing
        same = False
    return library if same else "of another version: install the package again"


def _layout(library: ctypes.CDLL, stem: str) -> tuple[int, ...]:
    """The size of its structure in bytes; for the scan also the largest tile in neurons and a chunk in steps."""
    return tuple((ctypes.c_int64 * (3 if stem == "srm_scan" else 1)).in_dll(library, f"{stem}_layout"))


@functools.cache
def _thread_pool() -> Any:
    """The entry to the OpenMP threads that PyTorch has loaded; None where they are of another kind."""
    return getattr(ctypes.CDLL(torch._C.__file__), "GOMP_parallel", None)


def problem() -> str | None:
    """Why the library cannot serve; None if it can."""
    library = _library()
    return library if isinstance(library, str) else None


def threads() -> int:
    """How many threads large tensors are served by: PyTorch's own, or one where they cannot be joined."""
    return torch.get_num_threads() if _thread_pool() else 1


def scan_forward(
    current: torch.Tensor,
    spikes: torch.Tensor,
    membrane: torch.Tensor | None,
    gradient_trace: torch.Tensor | None,
    time_axis: int,
    constants: tuple[float, ...],
) -> None:
    """Fills `spikes`, and where given `membrane`, `gradient_trace`, all laid out alike; as kernels/srm_scan.py."""
    x = _readable(current, spikes, time_axis)
    tensors = (spikes, membrane, gradient_trace)
    results = [_writable(tensor, x, time_axis) for tensor in tensors]
    scan = _Scan(*x.shape, **dict(zip(_CONSTANTS.split(), constants, strict=True)))
    scan.current_stride_outer, scan.current_stride_time, _ = x.stride()
    scan.current = x.data_ptr()
    scan.spikes, scan.membrane, scan.gradient_trace = map(_pointer, results)
    _run_scan("forward", scan, x.dtype, _number_of_threads(x))
    _hand_over(results, tensors, time_axis)


def scan_backward(
    grad_spikes: torch.Tensor,
    current: torch.Tensor,
    label_steps: torch.Tensor | None,
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
    if label_steps is not None:
        label_steps = outer_time_inner(label_steps.unsqueeze(time_axis), like, time_axis).to(torch.int32).contiguous()
    tensors = (grad_weight_path, grad_time_path)
    results = [_writable(tensor, x, time_axis) for tensor in tensors]
    threads = _number_of_threads(x)
    _, largest_tile, chunk = _layout(_library(), "srm_scan")
    scratch = x.new_empty(threads, 2 * chunk + 3 * -(-x.shape[1] // chunk), largest_tile)

    scan = _Scan(*x.shape, **dict(zip(_CONSTANTS.split(), constants, strict=True)))
    scan.rise, scan.membrane_slope_limit, scan.gradient_slope_limit = gradient_constants
    scan.current_stride_outer, scan.current_stride_time, _ = x.stride()
    scan.grad_stride_outer, scan.grad_stride_time, _ = grad.stride()
    scan.current, scan.grad_spikes, scan.label_steps = x.data_ptr(), grad.data_ptr(), _pointer(label_steps)
    scan.grad_weight_path, scan.grad_time_path = map(_pointer, results)
    scan.scratch = scratch.data_ptr()
    _run_scan("backward", scan, x.dtype, threads)
    _hand_over(results, tensors, time_axis)


def _readable(tensor: torch.Tensor, like: torch.Tensor, time_axis: int) -> torch.Tensor:
    """`tensor` as [outer, time, inner] in float32 or float64, inner with stride 1; narrow ones as [1, time, inner]."""
    viewed = outer_time_inner(tensor, like, time_axis)
    viewed = viewed.to(accumulator_dtype(tensor.dtype))
    outer, steps, inner = viewed.shape
    if inner < _NARROW:
        viewed = viewed.transpose(0, 1).reshape(1, steps, outer * inner)
    return viewed if viewed.stride(2) == 1 else viewed.contiguous()


def _writable(tensor: torch.Tensor | None, x: torch.Tensor, time_axis: int) -> torch.Tensor | None:
    """The tensor itself, if it lies in memory as the dense x would, else a new one."""
    if tensor is None or (tensor.dtype == x.dtype and outer_time_inner(tensor, tensor, time_axis).shape == x.shape):
        return tensor
    return x.new_empty(x.shape)


def _hand_over(results: list[torch.Tensor | None], tensors: tuple[torch.Tensor | None, ...], time_axis: int) -> None:
    for result, tensor in zip(results, tensors, strict=True):
        if tensor is not None and tensor is not result:
            viewed = outer_time_inner(tensor, tensor, time_axis)
            if viewed.shape != result.shape:  # narrow
                viewed = viewed.transpose(0, 1)
            viewed.copy_(result.view(viewed.shape))


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _number_of_threads(x: torch.Tensor) -> int:
    return threads() if x.numel() >= _PARALLEL_FROM else 1


def _run_scan(direction: str, scan: _Scan, dtype: torch.dtype, threads: int) -> None:
    _, scan.tile, _ = _layout(_library(), "srm_scan")
    while scan.tile > _SMALLEST_TILE and scan.outer * -(-scan.inner // scan.tile) < threads:
        scan.tile //= 2  # so that no thread goes without
    _run(f"srm_scan_{direction}", scan, dtype, threads)


def _run(stem: str, argument: ctypes.Structure, dtype: torch.dtype, threads: int) -> None:
    function = getattr(_library(), f"{stem}_{'double' if dtype == torch.float64 else 'float'}")
    function(ctypes.byref(argument), _thread_pool(), ctypes.c_uint(threads))


def bregman_step(
    estimate: torch.Tensor,
    image: torch.Tensor,
    splits: torch.Tensor,
    penalty: torch.Tensor,
    target: torch.Tensor,
    weight: float,
    relaxation: float,
) -> torch.Tensor:
    """Advances `splits` in place and fills `target`; arguments as kernels/shrink.py.

    Returns:
        [samples, 4], float64: sums of squares, of S(v) − g, of what S(v) moved by, of S(v), and of v − S(v).
    """
    samples, channels, height, width = image.shape
    threads = _number_of_threads(image)
    band = -(-height * samples * channels // (_BANDS * threads))
    step = _Step(samples, splits.shape[1], channels, height, width, min(band, height) if threads > 1 else height)
    step.weight, step.relaxation = weight, relaxation
    above = image.new_empty(samples * channels * -(-height // step.band), width)
    scratch = image.new_empty(threads, 4, width + 1)
    squares = image.new_empty(samples, channels * height, 4, dtype=torch.float64)
    step.estimate, step.image, step.penalty = estimate.data_ptr(), image.data_ptr(), penalty.data_ptr()
    step.splits, step.target, step.above = splits.data_ptr(), target.data_ptr(), above.data_ptr()
    step.scratch, step.squares = scratch.data_ptr(), squares.data_ptr()
    _run("shrink_bregman", step, image.dtype, threads)
    return squares.sum(1)


def poisson_columns(
    values: torch.Tensor, reach: torch.Tensor, decay: torch.Tensor, gain: torch.Tensor, cycle: torch.Tensor
) -> None:
    """Solves the systems that the columns are, in place.

    Args:
        values: [samples, channels, height, columns], contiguous, float32 or float64.
        reach: how many rows a value is felt over, int64 [samples, columns], as the others.
        decay: of a value, from row to row.
        gain: what values are multiplied by, twice.
        cycle: 1 / (1 − decay^height).
    """
    samples, channels, height, columns = values.shape
    poisson = _Poisson(
        samples * channels, channels, height, columns, *map(_pointer, (reach, decay, gain, cycle, values))
    )
    _run("poisson_columns", poisson, values.dtype, _number_of_threads(values))
