"""Launches the C versions, <stem>.c, which an installation builds where it finds a compiler."""

import ctypes
import functools
import importlib.util
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import MOST_LEVELS, SRM_SCAN_RISE, SRM_SCAN_RULES
from .layout import NeuronOrder, accumulator_dtype, outer_time_inner, rows_of

_SMALLEST_TILE = 256  # neurons; shorter rows cost more than idle threads
_NARROW = 16  # neurons; shorter rows, if there are more than so many, cost more than copies that make one row of all
_WIDE = 128  # neurons of a channel that lie side by side; fewer are worth no tile of their own
_PARALLEL_FROM = 1 << 15  # elements, PyTorch's own grain size
_STORAGES = {torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3, torch.bool: 3}  # of what is not as computed
_BANDS = 4  # of images, for each thread: one that starts late takes fewer


def _fields(*groups: tuple[type, str]) -> list[tuple[str, type]]:
    return [(name, kind) for kind, names in groups for name in names.split()]


class _Scan(ctypes.Structure):
    """`Scan` of srm_scan.c, field by field."""

    _fields_ = _fields(
        (ctypes.c_int64, "outer steps inner tile block channels channel_stride each"),
        (ctypes.c_int64, "current_stride_outer current_stride_time grad_stride_outer grad_stride_time storage"),
        (ctypes.c_int64, "spike_storage rule"),
        (ctypes.c_double, "rise"),
        (ctypes.c_void_p, "current constants initial grad_spikes grad_final events"),
        (ctypes.c_void_p, "spikes final membrane gradient_trace weight_path time_path grad_initial grad_constants"),
        (ctypes.c_void_p, "scratch"),
        (ctypes.c_longlong, "tiles_taken workers"),
    )


class _Step(ctypes.Structure):
    """`Step` of shrink.c, field by field."""

    _fields_ = _fields(
        (ctypes.c_int64, "samples kinds channels height width band mirrored"),
        (ctypes.c_double, "relaxation"),
        (ctypes.c_void_p, "estimate image penalty weight splits target above scratch squares"),
        (ctypes.c_longlong, "bands_taken workers"),
    )


class _Poisson(ctypes.Structure):
    """`Poisson` of poisson.c, field by field."""

    _fields_ = _fields(
        (ctypes.c_int64, "planes channels height columns mirrored"),
        (ctypes.c_void_p, "reach decay gain cycle mirror turn values"),
        (ctypes.c_longlong, "tiles_taken"),
    )


class _Cosine(ctypes.Structure):
    """`Cosine` of cosine.c, field by field."""

    _fields_ = _fields(
        (ctypes.c_int64, "rows width back"),
        (ctypes.c_void_p, "source ordered scratch"),
        (ctypes.c_longlong, "chunks_taken workers"),
    )


class _Variation(ctypes.Structure):
    """`Variation` of variation.c, field by field."""

    _fields_ = _fields(
        (ctypes.c_int64, "samples kinds channels height width l1 mirrored"),
        (ctypes.c_void_p, "estimate image splits weight range scratch sums"),
        (ctypes.c_longlong, "chunks_taken workers"),
    )


class _BatchNorm(ctypes.Structure):
    """`BatchNorm` of batch_norm.c, field by field."""

    _fields_ = _fields(
        (ctypes.c_int64, "samples features by_rows fold keep_zeros"),
        (ctypes.c_double, "eps divisor"),
        (ctypes.c_void_p, "inputs weight bias grad_outputs results statistics grad_affine partials"),
        (ctypes.c_longlong, "tiles_taken"),
    )


class _Levels(ctypes.Structure):
    """`Levels` of levels.c, field by field."""

    _fields_ = _fields((ctypes.c_int64, "count bits levels"), (ctypes.c_void_p, "values table codes"))


class _Gather(ctypes.Structure):
    """`Gather` of gather_linear.c, field by field."""

    _fields_ = _fields(
        (ctypes.c_int64, "samples inputs outputs row columns terms storage"),
        (ctypes.c_void_p, "x weight bias results scratch"),
        (ctypes.c_longlong, "tiles_taken workers"),
    )


class _Count(ctypes.Structure):
    """`Count` of gather_linear.c, field by field."""

    _fields_ = _fields((ctypes.c_int64, "size count"), (ctypes.c_void_p, "values"))


_STRUCTURES = {
    "srm_scan": _Scan, "batch_norm": _BatchNorm, "shrink": _Step, "poisson": _Poisson, "cosine": _Cosine,
    "variation": _Variation, "levels": _Levels, "gather_linear": _Gather,
}  # fmt: skip
_LAYOUTS = {"srm_scan": 3, "batch_norm": 3, "gather_linear": 4}  # numbers that a source states


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


@functools.cache
def _layout(library: ctypes.CDLL, stem: str) -> tuple[int, ...]:
    """Its structure's size, and what else a source says of its tiles."""
    return tuple((ctypes.c_int64 * _LAYOUTS.get(stem, 1)).in_dll(library, f"{stem}_layout"))


@functools.cache
def _thread_pool() -> Any:
    """The entry to the OpenMP threads that PyTorch has loaded; None where they are of another kind."""
    try:
        return getattr(ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")), "GOMP_parallel", None)
    except OSError:  # another platform
        return None


def problem() -> str | None:
    """Why the library cannot serve; None if it can."""
    library = _library()
    return library if isinstance(library, str) else None


def threads() -> int:
    """How many threads large tensors are served by: PyTorch's own, or one where they cannot be joined."""
    return torch.get_num_threads() if _thread_pool() else 1


class _Neurons(NeuronOrder):
    """The tensors of a scan as C reads them: [outer, time, inner], inner with stride 1.

    Sequences are in the dtype of the current, spikes and their gradient in one of their own, states and traces in that
    of the constants, float32 or float64. Where inner is narrow, all neurons make one row.
    """

    def __init__(self, current: torch.Tensor, like: torch.Tensor, constants: torch.Tensor, time_axis: int) -> None:
        super().__init__(like, time_axis, constants.shape[1])
        self.dtype = current.dtype
        self.current = self.sequence(current)
        blocks = _blocks(self.current.shape[2], self.channels, self.channel_stride)
        self.scan = _Scan(*self.current.shape, 0, *blocks)
        self.scan.storage = _STORAGES.get(self.dtype, 0)
        self.scan.current_stride_outer, self.scan.current_stride_time, _ = self.current.stride()
        self.kept: list[torch.Tensor] = []  # whose memory the structure points to
        self.results: list[tuple[torch.Tensor, torch.Tensor, int | None]] = []
        self._point("current", self.current)
        self._point("constants", constants.contiguous())

    def _point(self, name: str, tensor: torch.Tensor) -> None:
        self.kept.append(tensor)
        setattr(self.scan, name, tensor.data_ptr())

    def sequence(self, tensor: torch.Tensor) -> torch.Tensor:
        """As C reads it."""
        viewed = super().sequence(tensor)
        outer, steps, inner = viewed.shape
        if inner < _NARROW < outer:
            viewed = viewed.transpose(0, 1).reshape(1, steps, outer * inner)
        return viewed if viewed.stride(2) == 1 else viewed.contiguous()

    def point_to_states(self, *, filled: bool, **tensors: torch.Tensor | None) -> None:
        """Points fields to states and events that are given; C reads them, or has `filled` them."""
        for name, tensor in tensors.items():
            leading = 0 if name == "events" else 1
            flat = self.flat(tensor, leading)
            if tensor is not None and flat is not None:
                self._point(name, flat)
                if filled:
                    self.results.append((flat, tensor, leading))

    def point_to_sequences(self, **tensors: torch.Tensor | None) -> None:
        """Points fields to sequences that C fills: to their own memory, if it is as C writes it."""
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            viewed = outer_time_inner(tensor, tensor, self.time_axis)
            if viewed.shape != self.current.shape:  # narrow
                viewed = viewed.transpose(0, 1)
            own = viewed.shape == self.current.shape
            memory = viewed if own else torch.empty(self.current.shape, dtype=tensor.dtype)
            self._point(name, memory)
            if not own:
                self.results.append((memory.view(viewed.shape), viewed, None))

    def run(self, direction: str, threads: int) -> None:
        """Runs the scan and hands the results over."""
        scan = self.scan
        scan.tile = _tile(scan.outer, scan.inner, scan.block, threads)
        _run(f"srm_scan_{direction}", scan, self.dtype, threads)
        for memory, tensor, leading in self.results:
            if leading is None:
                tensor.copy_(memory)
            else:
                self.hand_over(memory, tensor, leading)


_PACK = struct.Struct("15q d 15P 2q").pack  # `_Scan`, in a tenth of the time
_PACK_NORM = struct.Struct("5q 2d 8P q").pack  # likewise `_BatchNorm`


class LaunchPlan(NamedTuple):
    """What is the same in each scan of sequences of one layout."""

    sizes: tuple[int, ...]
    """The first fields of `_Scan`, up to the rule."""
    scratch: int
    """Values that the backward needs beside."""
    forward: Any
    """The function of the library."""
    backward: Any


def _pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@functools.lru_cache(maxsize=512)
def scan_plan(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    grad_stride: tuple[int, ...],
    dtype: torch.dtype,
    spike_dtype: torch.dtype,
    channels: int,
    time_axis: int,
    threads: int,
) -> LaunchPlan | None:
    """The plan for a current and its spikes, or the gradient of these; None where they are not read as they are.

    The plans used last are kept: `scan_plan.cache_info()` counts them, `scan_plan.cache_clear()` forgets them.
    """
    strides = stride, grad_stride
    sequence, gradient = (torch.empty_strided(shape, each, dtype=dtype, device="meta") for each in strides)
    like = torch.empty_like(sequence)
    order = NeuronOrder(like, time_axis, channels)
    rows = [rows_of(each, like, time_axis) for each in (sequence, gradient)]
    if like.stride() != stride or order.axes != sorted(order.axes) or any(each is None for each in rows):
        return None
    current, grad = (row for row in rows if row is not None)
    outer, steps, inner = current.shape
    if inner < _NARROW < outer or (inner > 1 and (current.stride(2) != 1 or grad.stride(2) != 1)):
        return None
    _, tile, chunk = _layout(_library(), "srm_scan")
    block, *others = _blocks(inner, channels, order.channel_stride)
    neurons = _tile(outer, inner, block, threads), block, *others
    sizes = outer, steps, inner, *neurons, *current.stride()[:2], *grad.stride()[:2]
    sizes = *sizes, _STORAGES.get(dtype, 0), _STORAGES.get(spike_dtype, 0)
    functions = (_function(f"srm_scan_{direction}", dtype) for direction in ("forward", "backward"))
    return LaunchPlan(sizes, threads * 3 * (chunk - (-steps // chunk)) * tile, *functions)


def _blocks(inner: int, channels: int, stride: int) -> tuple[int, int, int, bool]:
    """Neurons that tiles divide, the channels, their stride, and whether constants change within a tile."""
    wide = channels > 1 and stride >= _WIDE
    return min(stride, inner) if wide else inner, channels, stride, channels > 1 and not wide


def _tile(outer: int, inner: int, block: int, threads: int) -> int:
    """Neurons of a block that a thread takes at once."""
    _, tile, _ = _layout(_library(), "srm_scan")
    while tile > _SMALLEST_TILE and outer * (inner // block) * -(-block // tile) < threads:
        tile //= 2  # so that no thread goes without
    return tile


def _plan_for(
    current: torch.Tensor, grad: torch.Tensor, time_axis: int, threads: int, channels: int, *states: torch.Tensor | None
) -> LaunchPlan | None:
    """The plan for tensors that C reads as they are; None where they need copies."""
    for state in states:
        if state is not None and not state.is_contiguous():
            return None
    return scan_plan(
        current.shape, current.stride(), grad.stride(), current.dtype, grad.dtype, channels, time_axis, threads
    )


def scan_forward(
    current: torch.Tensor,
    constants: torch.Tensor,
    initial: torch.Tensor | None,
    spikes: torch.Tensor,
    final: torch.Tensor | None,
    events: torch.Tensor | None,
    membrane: torch.Tensor | None,
    gradient_trace: torch.Tensor | None,
    time_axis: int,
) -> None:
    """Fills `spikes` and, where they are given, the others; as kernels/srm_scan.py."""
    threads = _number_of_threads(current)
    plan = _plan_for(current, spikes, time_axis, threads, constants.shape[1], constants, initial)
    if plan is not None:
        read = current.data_ptr(), constants.data_ptr(), _pointer(initial), 0, 0, _pointer(events)
        filled = spikes.data_ptr(), _pointer(final), _pointer(membrane), _pointer(gradient_trace)
        plan.forward(_PACK(*plan.sizes, 0, SRM_SCAN_RISE, *read, *filled, *[0] * 7), _thread_pool(), threads)
        return
    neurons = _Neurons(current, spikes, constants, time_axis)
    neurons.scan.rise, neurons.scan.spike_storage = SRM_SCAN_RISE, _STORAGES.get(spikes.dtype, 0)
    neurons.point_to_states(filled=False, initial=initial)
    neurons.point_to_states(filled=True, final=final, events=events)
    neurons.point_to_sequences(spikes=spikes, membrane=membrane, gradient_trace=gradient_trace)
    neurons.run("forward", threads)


def scan_backward(
    grad_spikes: torch.Tensor,
    grad_final: torch.Tensor | None,
    current: torch.Tensor,
    constants: torch.Tensor,
    initial: torch.Tensor | None,
    events: torch.Tensor | None,
    weight_path: torch.Tensor | None,
    time_path: torch.Tensor | None,
    grad_initial: torch.Tensor | None,
    grad_constants: torch.Tensor | None,
    time_axis: int,
    rule: str,
) -> None:
    """Fills those of the last four tensors that are given; as kernels/srm_scan.py."""
    threads = _number_of_threads(current)
    if accumulator_dtype(grad_spikes.dtype) != constants.dtype:  # which C reads no sequence in
        grad_spikes = grad_spikes.to(constants.dtype)
    plan = _plan_for(
        current, grad_spikes, time_axis, threads, constants.shape[1], constants, initial, grad_final, events
    )
    if plan is not None:
        scratch = constants.new_empty(plan.scratch)
        read = current.data_ptr(), constants.data_ptr(), _pointer(initial), grad_spikes.data_ptr(), _pointer(grad_final)
        filled = _pointer(weight_path), _pointer(time_path), _pointer(grad_initial), _pointer(grad_constants)
        pointers = *read, _pointer(events), 0, 0, 0, 0, *filled, scratch.data_ptr(), 0, 0
        plan.backward(_PACK(*plan.sizes, SRM_SCAN_RULES[rule], SRM_SCAN_RISE, *pointers), _thread_pool(), threads)
        return
    like = next((path for path in (weight_path, time_path) if path is not None), torch.empty_like(current))
    neurons = _Neurons(current, like, constants, time_axis)
    scan = neurons.scan
    grad = neurons.sequence(grad_spikes)
    scan.grad_stride_outer, scan.grad_stride_time, _ = grad.stride()
    scan.rule, scan.grad_spikes = SRM_SCAN_RULES[rule], grad.data_ptr()
    scan.spike_storage = _STORAGES.get(grad.dtype, 0)
    neurons.point_to_states(filled=False, initial=initial, grad_final=grad_final, events=events)
    neurons.point_to_states(filled=True, grad_initial=grad_initial, grad_constants=grad_constants)
    neurons.point_to_sequences(weight_path=weight_path, time_path=time_path)
    _, largest_tile, chunk = _layout(_library(), "srm_scan")
    scratch = constants.new_empty(threads, 3 * (chunk - (-scan.steps // chunk)), largest_tile)
    scan.scratch = scratch.data_ptr()
    neurons.run("backward", threads)


def _number_of_threads(x: torch.Tensor) -> int:
    return threads() if x.numel() >= _PARALLEL_FROM else 1


@functools.cache
def _function(stem: str, dtype: torch.dtype) -> Any:
    kind = (
        f"uint{8 * dtype.itemsize}_t" if stem.startswith("levels") else "double" if dtype == torch.float64 else "float"
    )
    function = getattr(_library(), f"{stem}_{kind}")
    function.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint
    return function


def _run(stem: str, argument: ctypes.Structure, dtype: torch.dtype, threads: int) -> None:
    _function(stem, dtype)(ctypes.byref(argument), _thread_pool(), threads)


def bregman_step(
    estimate: torch.Tensor,
    image: torch.Tensor,
    splits: torch.Tensor,
    penalty: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    relaxation: float,
    mirrored: bool,
) -> torch.Tensor:
    """Advances `splits` in place and fills `target`; arguments as kernels/shrink.py.

    Returns:
        [samples, 4], float64: sums of squares, of S(v) − g, of what S(v) moved by, of S(v), and of v − S(v).
    """
    samples, channels, height, width = image.shape
    threads = _number_of_threads(image)
    band = -(-height * samples * channels // (_BANDS * threads))
    step = _Step(samples, splits.shape[1], channels, height, width, min(band, height) if threads > 1 else height)
    step.relaxation, step.mirrored = relaxation, mirrored
    above = image.new_empty(samples * channels * -(-height // step.band), width)
    scratch = image.new_empty(threads, 4, width + 1)
    squares = image.new_empty(samples, channels * height, 4, dtype=torch.float64)
    step.estimate, step.image = estimate.data_ptr(), image.data_ptr()
    step.penalty, step.weight = penalty.data_ptr(), weight.data_ptr()
    step.splits, step.target, step.above = splits.data_ptr(), target.data_ptr(), above.data_ptr()
    step.scratch, step.squares = scratch.data_ptr(), squares.data_ptr()
    _run("shrink_bregman", step, image.dtype, threads)
    return squares.sum(1)


def poisson_columns(
    values: torch.Tensor,
    reach: torch.Tensor,
    decay: torch.Tensor,
    gain: torch.Tensor,
    cycle: torch.Tensor,
    mirror: torch.Tensor | None,
    turn: torch.Tensor | None,
) -> None:
    """Solves the systems that the columns are, in place.

    Args:
        values: [samples, channels, height, columns], contiguous, float32 or float64.
        reach: how many rows a value is felt over, int64 [samples, columns], as the others.
        decay: of a value, from row to row.
        gain: what values are multiplied by, twice.
        cycle: 1 / (1 − decay^period).
        mirror: gain / (1 − decay), of columns with mirrored edges, whose period is twice their height; else None.
        turn: of each pair of these columns, what turns it before, and back after; complex [columns / 2].
    """
    samples, channels, height, columns = values.shape
    pointers = map(_pointer, (reach, decay, gain, cycle, mirror, turn, values))
    poisson = _Poisson(samples * channels, channels, height, columns, mirror is not None, *pointers)
    _run("poisson_columns", poisson, values.dtype, _number_of_threads(values))


def cosine_order(values: torch.Tensor, ordered: torch.Tensor, *, back: bool) -> None:
    """Fills `ordered` with rows of all even and then, backwards, all odd places; or, with `back`, in order again.

    Both are contiguous; they may be the same.
    """
    threads, width = _number_of_threads(values), values.shape[-1]
    scratch = values.new_empty(threads, width)
    pointers = map(_pointer, (values, ordered, scratch))
    _run("cosine_order", _Cosine(values.numel() // width, width, back, *pointers), values.dtype, threads)


def variation_sums(
    estimate: torch.Tensor,
    image: torch.Tensor,
    splits: torch.Tensor,
    weight: torch.Tensor,
    extremes: torch.Tensor,
    *,
    l1: bool,
    mirrored: bool,
) -> torch.Tensor:
    """Objective and bound of each sample, float64 [samples, 2].

    Args:
        estimate: [samples, channels, height, width], contiguous, float32 or float64, as all of these.
        image: the noisy image.
        splits: [samples, kinds, channels, height, width].
        weight: [samples].
        extremes: the darkest and the brightest pixel of each channel, [samples, channels, 2].
        l1: whether the fidelity is the sum of magnitudes, else of squares.
        mirrored: whether edges are.
    """
    samples, channels, height, width = image.shape
    threads = _number_of_threads(image)
    scratch = image.new_empty(threads, 2, width + 1)
    sums = image.new_empty(samples, channels * height, 2, dtype=torch.float64)
    tensors = map(_pointer, (estimate, image, splits, weight, extremes, scratch, sums))
    variation = _Variation(samples, splits.shape[1], channels, height, width, l1, mirrored, *tensors)
    _run("variation_sums", variation, image.dtype, threads)
    return sums.sum(1)


def batch_norm_forward(
    inputs: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    outputs: torch.Tensor,
    statistics: torch.Tensor,
    eps: float,
    divisor: int,
    keep_zeros: bool,
) -> None:
    """Fills the last two tensors; arguments as kernels/batch_norm.py."""
    _batch_norm("forward", inputs, weight, bias, None, outputs, statistics, None, eps, divisor, keep_zeros)


def batch_norm_backward(
    grad_outputs: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor | None,
    statistics: torch.Tensor,
    grad_inputs: torch.Tensor,
    grad_affine: torch.Tensor,
    eps: float,
    divisor: int,
    keep_zeros: bool,
) -> None:
    """Fills the last two tensors; arguments as kernels/batch_norm.py."""
    _batch_norm(
        "backward", inputs, weight, None, grad_outputs, grad_inputs, statistics, grad_affine, eps, divisor, keep_zeros
    )


def _batch_norm(
    direction: str,
    inputs: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    grad_outputs: torch.Tensor | None,
    results: torch.Tensor,
    statistics: torch.Tensor,
    grad_affine: torch.Tensor | None,
    eps: float,
    divisor: int,
    keep_zeros: bool,
) -> None:
    """On [samples, features]: dense as they are or transposed, or copied into that."""
    samples, features = inputs.shape
    dtype = statistics.dtype
    by_rows = features < _NARROW or (samples > 1 and inputs.stride(0) == 1)

    def dense(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        return (tensor.t() if by_rows and tensor.dim() == 2 else tensor).to(dtype).contiguous()

    filled, own = results, None
    matrices, vectors = (inputs, results, grad_outputs), (weight, bias)
    if not (_are(matrices, dtype, (1, samples) if by_rows else (features, 1)) and _are(vectors, dtype, (1,))):
        own = results.t() if by_rows else results
        filled = own if own.dtype == dtype and own.is_contiguous() else own.new_empty(own.shape, dtype=dtype)
        inputs, weight, bias, grad_outputs = map(dense, (inputs, weight, bias, grad_outputs))
    partials, fold = None, 1
    if not by_rows:
        _, columns, rows = _layout(_library(), "batch_norm")
        while samples % (2 * fold) == 0 and 2 * fold * features <= columns:
            fold *= 2
        partials = statistics.new_empty(-(-samples // (fold * rows)), 3, fold * features, dtype=torch.float64)
    tensors = inputs, weight, bias, grad_outputs, filled, statistics, grad_affine, partials
    packed = _PACK_NORM(samples, features, by_rows, fold, keep_zeros, eps, divisor, *map(_pointer, tensors), 0)
    _function(f"batch_norm_{direction}", dtype)(packed, _thread_pool(), _number_of_threads(results))
    if own is not None and own is not filled:
        own.copy_(filled)


def _are(tensors: tuple[torch.Tensor | None, ...], dtype: torch.dtype, stride: tuple[int, ...]) -> bool:
    for tensor in tensors:  # noqa: SIM110, a generator takes twice as long
        if tensor is not None and (tensor.dtype != dtype or tensor.stride() != stride):
            return False
    return True


def _levels(direction: str, values: torch.Tensor, table: torch.Tensor, codes: torch.Tensor | None, bits: int) -> int:
    argument = _Levels(values.numel(), bits, len(table), values.data_ptr(), table.data_ptr(), _pointer(codes))
    _run(f"levels_{direction}", argument, values.dtype, 1)
    return int(argument.levels)


def find_levels(values: torch.Tensor) -> torch.Tensor | None:
    """The different values of a dense tensor, in the order of memory; None for more than `MOST_LEVELS`."""
    table = values.new_empty(MOST_LEVELS)
    found = _levels("find", values, table, None, 0)
    return table[:found].clone() if found <= MOST_LEVELS else None


def encode_levels(values: torch.Tensor, table: torch.Tensor, bits: int) -> torch.Tensor:
    """The numbers of the values in the table, of `bits` each, the first in the lowest bits of a byte; uint8."""
    codes = values.new_empty(-(-values.numel() * bits // 8), dtype=torch.uint8)
    _levels("encode", values, table, codes, bits)
    return codes


def decode_levels(values: torch.Tensor, codes: torch.Tensor, table: torch.Tensor, bits: int) -> None:
    """Fills dense `values` with those that `encode_levels` took."""
    _levels("decode", values, table, codes, bits)


def row_of_panels(outputs: int) -> int:
    """Values from row to row of a weight that `gather_linear` reads: whole panels, and a line that parts the cache."""
    panel = _layout(_library(), "gather_linear")[1]
    return -(-outputs // panel) * panel + 16


def count_nonzero(values: torch.Tensor) -> int:
    """How many values of a contiguous tensor, of floats or bytes, are not 0."""
    count = _Count(values.itemsize, values.numel(), values.data_ptr())
    _library().gather_linear_count(ctypes.byref(count))  # type: ignore[union-attr]
    return int(count.count)


def gather_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, results: torch.Tensor) -> None:
    """Fills `results`, in the dtype of the weight.

    Args:
        inputs: [samples, inputs], contiguous, in the dtype of the weight, half precision or uint8.
        weight: [outputs, inputs] in float32 or float64, with strides (1, `row_of_panels(outputs)`).
        bias: [outputs], contiguous, or None.
        results: [samples, outputs], contiguous.
    """
    (samples, width), outputs, threads = inputs.shape, len(weight), _number_of_threads(results)
    _, panel, block, most = _layout(_library(), "gather_linear")
    across = -(-threads * most // max(samples, most))  # so that no thread goes without
    columns = -(-outputs // (panel * across)) * panel
    terms = min(samples, most) * min(width, block) + 1
    scratch = torch.empty(threads, terms, 2, dtype=weight.dtype)
    tensors = map(_pointer, (inputs, weight, bias, results, scratch))
    storage = 0 if inputs.dtype == weight.dtype else _STORAGES[inputs.dtype]
    gather = _Gather(samples, width, outputs, weight.stride(1), columns, terms, storage, *tensors)
    _run("gather_linear", gather, weight.dtype, threads)
