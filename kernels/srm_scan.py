"""Triton kernels of the SRM scan: a tile of neurons per program, time in chunks that are held in registers.

All loads of a chunk stand before the first use of one; the assembler may move some, but none behind the chunk's first
result. The backward keeps nothing but the input current: it recomputes each chunk, last to first, from the state that
the forward stored at the chunk's start. Chunks are of equal length but the last, which may be shorter. Equations and
names: `srm_triton/ops/srm_scan.py`.
"""

from dataclasses import dataclass

import torch
import triton
from triton import language as tl

from . import SRM_SCAN_CHUNK, launch
from .configurations import Configuration
from .layout import outer_time_inner


@triton.jit
def _neurons(outer, inner, BLOCK_OUTER: tl.constexpr, BLOCK_INNER: tl.constexpr):
    rows = tl.program_id(1).to(tl.int64) * BLOCK_OUTER + tl.arange(0, BLOCK_OUTER)[:, None]
    columns = tl.program_id(0).to(tl.int64) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)[None, :]
    return rows, columns, (rows < outer) & (columns < inner)


@triton.jit
def _load_chunk(pointer, stride, steps_left, accumulator: tl.constexpr, CHUNK: tl.constexpr, WHOLE: tl.constexpr):
    values = ()
    for k in tl.static_range(CHUNK):
        value = tl.load(pointer, mask=steps_left > (0 if WHOLE else k), other=0.0)
        values = values + (value.to(accumulator),)
        pointer += stride
    return values


@triton.jit
def _step(state, x, constants):
    m, s, g = state
    membrane_decay, synapse_decay, gradient_decay, amplitude, threshold = constants
    m = (m + x) * membrane_decay
    s = (s + x) * synapse_decay
    g = (g + x) * gradient_decay
    u = amplitude * (m - s)
    fired = u > threshold
    return u, g, fired, (tl.where(fired, 0.0, m), tl.where(fired, 0.0, s), tl.where(fired, 0.0, g))


@triton.jit(do_not_specialize=["chunks", "rest", "outer"])
def srm_scan_forward_kernel(
    current,
    spikes,
    membrane,
    gradient_trace,
    states,
    chunks: tl.int32,
    rest: tl.int32,
    outer: tl.int64,
    inner: tl.int64,
    current_stride_outer: tl.int64,
    current_stride_time: tl.int64,
    current_stride_inner,
    constants,
    STORE_TRACE: tl.constexpr,
    STORE_STATES: tl.constexpr,
    CHUNK: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    accumulator: tl.constexpr = tl.float64 if current.dtype.element_ty == tl.float64 else tl.float32
    constants = launch.convert(constants, accumulator)
    rows, columns, inside = _neurons(outer, inner, BLOCK_OUTER, BLOCK_INNER)
    steps = (chunks - 1).to(tl.int64) * CHUNK + rest
    current += rows * current_stride_outer + columns * current_stride_inner
    output = rows * steps * inner + columns
    kept = rows * inner + columns

    zeros = tl.zeros((BLOCK_OUTER, BLOCK_INNER), accumulator)
    state = (zeros, zeros, zeros)
    for chunk in range(chunks):
        if STORE_STATES:
            for i in tl.static_range(3):
                tl.store(states + kept + (i - 3) * outer * inner, state[i], mask=inside & (chunk > 0))
            kept += 3 * outer * inner
        steps_left = tl.where(inside, tl.where(chunk < chunks - 1, CHUNK, rest), 0)
        inputs = _load_chunk(current, current_stride_time, steps_left, accumulator, CHUNK, WHOLE)
        for k in tl.static_range(CHUNK):
            u, g, fired, state = _step(state, inputs[k], constants)
            valid = steps_left > (0 if WHOLE else k)
            # by way of float32, since the interpreter converts no boolean to bfloat16
            tl.store(spikes + output + k * inner, fired.to(tl.float32).to(spikes.dtype.element_ty), mask=valid)
            if STORE_TRACE:
                tl.store(membrane + output + k * inner, u, mask=valid)
                tl.store(gradient_trace + output + k * inner, g, mask=valid)
        output += CHUNK * inner
        current += CHUNK * current_stride_time


@triton.jit(do_not_specialize=["chunks", "rest", "outer"])
def srm_scan_backward_kernel(
    grad_spikes,
    current,
    states,
    label_steps,
    grad_weight_path,
    grad_time_path,
    chunks: tl.int32,
    rest: tl.int32,
    outer: tl.int64,
    inner: tl.int64,
    grad_stride_outer: tl.int64,
    grad_stride_time: tl.int64,
    grad_stride_inner,
    current_stride_outer: tl.int64,
    current_stride_time: tl.int64,
    current_stride_inner,
    constants,
    gradient_constants,
    LOAD_STATES: tl.constexpr,
    LOAD_LABEL_STEPS: tl.constexpr,
    STORE_WEIGHT_PATH: tl.constexpr,
    STORE_TIME_PATH: tl.constexpr,
    CHUNK: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    accumulator: tl.constexpr = tl.float64 if current.dtype.element_ty == tl.float64 else tl.float32
    constants = launch.convert(constants, accumulator)
    membrane_decay, synapse_decay, gradient_decay, amplitude, _ = constants
    rise, smallest_change, smallest_trace = launch.convert(gradient_constants, accumulator)
    rows, columns, inside = _neurons(outer, inner, BLOCK_OUTER, BLOCK_INNER)
    start = (chunks - 1).to(tl.int64) * CHUNK
    current += rows * current_stride_outer + columns * current_stride_inner + start * current_stride_time
    grad_spikes += rows * grad_stride_outer + columns * grad_stride_inner + start * grad_stride_time
    if LOAD_STATES:
        states += rows * inner + columns + (chunks - 1).to(tl.int64) * 3 * outer * inner
    # Two strides per lane: AMD GPUs have too few scalar registers for the offsets of all steps of a chunk.
    time_stride = tl.where(inside, inner, 0)
    current_stride = tl.where(inside, current_stride_time, 0)
    output = (rows * (start + rest) + start) * inner + columns + CHUNK * time_stride
    if LOAD_LABEL_STEPS:  # counted from the chunk's start
        label_step = tl.load(label_steps + rows * inner + columns, mask=inside, other=-1) - start.to(tl.int32)

    # How a current at this step would move the next spike, along both paths, decaying backward in time.
    zeros = tl.zeros((BLOCK_OUTER, BLOCK_INNER), accumulator)
    weight_response = zeros
    synapse_response = zeros
    time_response = zeros
    steps_left = tl.where(inside, rest, 0)
    for reverse in range(chunks):
        state = (zeros, zeros, zeros)
        if LOAD_STATES:
            later = inside & (reverse < chunks - 1)
            states -= 3 * outer * inner
            m = tl.load(states, mask=later, other=0.0)
            s = tl.load(states + outer * inner, mask=later, other=0.0)
            g = tl.load(states + 2 * outer * inner, mask=later, other=0.0)
            state = (m, s, g)
        inputs = _load_chunk(current, current_stride, steps_left, accumulator, CHUNK, WHOLE)
        grads = _load_chunk(grad_spikes, grad_stride_time, steps_left, accumulator, CHUNK, WHOLE)

        # 1/Δu and 1/Δu_t, clamped, at a spike; in place of 1/Δu, -1 marks a step without a spike and -2 no step at all.
        weight_slopes = ()
        time_slopes = ()
        for k in tl.static_range(CHUNK):
            valid = steps_left > (0 if WHOLE else k)
            previous = amplitude * (state[0] - state[1])
            u, trace, event, state = _step(state, inputs[k], constants)
            if LOAD_LABEL_STEPS:
                event = event | (label_step == k)
            change = u - previous
            slope = tl.where(change >= 0.0, 1.0 / tl.maximum(change, smallest_change), 0.0)
            weight_slopes = weight_slopes + (tl.where(valid, tl.where(event, slope, -1.0), -2.0),)
            time_slopes = time_slopes + (tl.where(trace >= 0.0, 1.0 / tl.maximum(trace, smallest_trace), 0.0),)

        for k in tl.static_range(CHUNK - 1, -1, -1):
            output -= time_stride
            event = weight_slopes[k] >= 0.0
            valid = weight_slopes[k] > -2.0
            if STORE_WEIGHT_PATH:
                weight = -weight_slopes[k] * grads[k]
                decayed = membrane_decay * weight_response + rise * synapse_response
                weight_response = tl.where(event, weight * rise, decayed)
                synapse_response = synapse_decay * tl.where(event, weight, synapse_response)
                tl.store(grad_weight_path + output, weight_response, mask=valid)
            if STORE_TIME_PATH:
                time = time_slopes[k] * grads[k]
                time_response = gradient_decay * tl.where(event, time, time_response)
                tl.store(grad_time_path + output, time_response, mask=valid)
        current -= CHUNK * current_stride
        grad_spikes -= CHUNK * grad_stride_time
        if LOAD_LABEL_STEPS:
            label_step += CHUNK
        steps_left = tl.where(inside, CHUNK, 0)


@dataclass(frozen=True)
class Tile:
    """How many neurons one program takes, and with how many warps."""

    block_outer: int
    block_inner: int
    num_warps: int

    def grid(self, outer: int, inner: int) -> tuple[int, int]:
        return triton.cdiv(inner, self.block_inner), triton.cdiv(outer, self.block_outer)


def usual_configuration(neurons: int, elements_per_thread: int) -> Configuration:
    """What fills a device that nothing has been tuned for: single warps for small layers, a neuron a thread if tiny."""
    if launch.interpreted():  # a program costs the same whatever its size
        return Configuration(4096, 4)
    num_warps = 1 if neurons < 65536 else 4
    return Configuration(32 * num_warps * (1 if neurons < 16384 else elements_per_thread), num_warps)


def choose_tile(outer: int, inner: int, configuration: Configuration) -> Tile:
    """A tile of the configuration's size, with rows of several samples where `inner` is short."""
    block_inner = min(configuration.block, triton.next_power_of_2(inner))
    block_outer = min(configuration.block // block_inner, triton.next_power_of_2(outer))
    while triton.cdiv(outer, block_outer) > launch.MAX_GRID_Y:
        block_outer *= 2
    return Tile(block_outer, block_inner, configuration.num_warps)


def split_time(steps: int) -> tuple[int, int, int]:
    """The number of chunks, as few as fit into registers; their length, as equal as can be; the last one's length."""
    chunks = triton.cdiv(steps, SRM_SCAN_CHUNK)
    chunk = triton.cdiv(steps, chunks)
    return chunks, chunk, steps - (chunks - 1) * chunk


def forward(
    current: torch.Tensor,
    spikes: torch.Tensor,
    membrane: torch.Tensor | None,
    gradient_trace: torch.Tensor | None,
    states: torch.Tensor | None,
    time_axis: int,
    constants: tuple[float, ...],
    configuration: Configuration | None = None,
) -> None:
    """Fills `spikes`, and where given `membrane`, `gradient_trace` (all laid out alike) and `states`.

    `constants` are the decays of membrane, synapse and gradient, the amplitude and the threshold. Without a
    `configuration` the usual one serves.

    `states` is [chunks - 1, 3, *neurons], contiguous: membrane, synapse and gradient state at the start of each chunk
    but the first.
    """
    x = outer_time_inner(current, spikes, time_axis)
    outer, steps, inner = x.shape
    chunks, chunk, rest = split_time(steps)
    tile = choose_tile(outer, inner, configuration or usual_configuration(outer * inner, elements_per_thread=2))
    ordered_states = None if states is None else _in_memory_order(states, spikes, time_axis)
    with launch.device_of(current):
        srm_scan_forward_kernel[tile.grid(outer, inner)](
            x,
            spikes,
            membrane,
            gradient_trace,
            ordered_states,
            chunks,
            rest,
            outer,
            inner,
            *x.stride(),
            launch.scalars(current.dtype, constants),
            STORE_TRACE=membrane is not None,
            STORE_STATES=states is not None,
            CHUNK=chunk,
            WHOLE=rest == chunk,
            BLOCK_OUTER=tile.block_outer,
            BLOCK_INNER=tile.block_inner,
            num_warps=tile.num_warps,
            enable_fp_fusion=False,
        )
    if states is not None and ordered_states.data_ptr() != states.data_ptr():
        order = _neuron_order(spikes, time_axis)
        shape = [states.shape[2 + axis] for axis in order]
        states.permute(0, 1, *(2 + axis for axis in order)).copy_(ordered_states.view(*states.shape[:2], *shape))


def _neuron_order(like: torch.Tensor, time_axis: int) -> list[int]:
    """The axes of `like` but time, counted without it, from the outermost in memory to the innermost."""
    neurons = like.select(time_axis, 0)
    return sorted(range(neurons.dim()), key=lambda axis: -neurons.stride(axis))


def _in_memory_order(states: torch.Tensor, like: torch.Tensor, time_axis: int) -> torch.Tensor:
    """`states` with their neurons as the kernels count them, in the memory order of `like`; copies only if it must."""
    order = _neuron_order(like, time_axis)
    return states.permute(0, 1, *(2 + axis for axis in order)).reshape(*states.shape[:2], -1)


def backward(
    grad_spikes: torch.Tensor,
    current: torch.Tensor,
    states: torch.Tensor | None,
    label_steps: torch.Tensor | None,
    grad_weight_path: torch.Tensor | None,
    grad_time_path: torch.Tensor | None,
    time_axis: int,
    constants: tuple[float, ...],
    gradient_constants: tuple[float, ...],
    configuration: Configuration | None = None,
) -> None:
    """Fills the gradients that are given, which are laid out alike; `label_steps` is int32 [*neurons], −1: none.

    `gradient_constants` are the rise c·(a_m − a_s) of the weight path and the limits of the two slopes.
    Without a `configuration` the usual one serves.
    """
    rise, membrane_slope_limit, gradient_slope_limit = gradient_constants
    like = grad_weight_path if grad_weight_path is not None else grad_time_path
    x = outer_time_inner(current, like, time_axis)
    grad = outer_time_inner(grad_spikes, like, time_axis)
    if label_steps is not None:
        label_steps = outer_time_inner(label_steps.unsqueeze(time_axis), like, time_axis).contiguous()
    outer, steps, inner = x.shape
    chunks, chunk, rest = split_time(steps)
    tile = choose_tile(outer, inner, configuration or usual_configuration(outer * inner, elements_per_thread=1))
    if states is not None:
        states = _in_memory_order(states, like, time_axis).contiguous()
    with launch.device_of(current):
        srm_scan_backward_kernel[tile.grid(outer, inner)](
            grad,
            x,
            states,
            label_steps,
            grad_weight_path,
            grad_time_path,
            chunks,
            rest,
            outer,
            inner,
            *grad.stride(),
            *x.stride(),
            launch.scalars(current.dtype, constants),
            launch.scalars(current.dtype, (rise, 1 / membrane_slope_limit, 1 / gradient_slope_limit)),
            LOAD_STATES=states is not None,
            LOAD_LABEL_STEPS=label_steps is not None,
            STORE_WEIGHT_PATH=grad_weight_path is not None,
            STORE_TIME_PATH=grad_time_path is not None,
            CHUNK=chunk,
            WHOLE=rest == chunk,
            BLOCK_OUTER=tile.block_outer,
            BLOCK_INNER=tile.block_inner,
            num_warps=tile.num_warps,
            enable_fp_fusion=False,
        )
