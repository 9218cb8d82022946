"""Triton kernels of the SRM scan: a tile of neurons per program, time in chunks that are held in registers.

All loads of a chunk are issued before the first of them is used. The backward keeps nothing but the input current: it
recomputes each chunk, last to first, from the state that the forward stored at the chunk's start. Every chunk has CHUNK
steps but the last, which has REST: no step needs a mask. Equations and names: `srm_triton/ops/srm_scan.py`.
"""

from dataclasses import dataclass

import torch
import triton
from triton import language as tl

from . import SRM_SCAN_CHUNK, launch


@triton.jit
def _neurons(outer, inner, BLOCK_OUTER: tl.constexpr, BLOCK_INNER: tl.constexpr):
    rows = tl.program_id(1).to(tl.int64) * BLOCK_OUTER + tl.arange(0, BLOCK_OUTER)[:, None]
    columns = tl.program_id(0).to(tl.int64) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)[None, :]
    return rows, columns, (rows < outer) & (columns < inner)


@triton.jit
def _load_steps(pointer, stride, inside, accumulator: tl.constexpr, STEPS: tl.constexpr):
    values = ()
    for _ in tl.static_range(STEPS):
        values = values + (tl.load(pointer, mask=inside, other=0.0).to(accumulator),)
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


@triton.jit
def _forward_chunk(
    state,
    current,
    stride_time,
    spikes,
    membrane,
    gradient_trace,
    inner,
    inside,
    constants,
    STORE_TRACE: tl.constexpr,
    STEPS: tl.constexpr,
):
    inputs = _load_steps(current, stride_time, inside, state[0].dtype, STEPS)
    for k in tl.static_range(STEPS):
        u, g, fired, state = _step(state, inputs[k], constants)
        # by way of float32, since the interpreter converts no boolean to bfloat16
        tl.store(spikes, fired.to(tl.float32).to(spikes.dtype.element_ty), mask=inside)
        spikes += inner
        if STORE_TRACE:
            tl.store(membrane, u, mask=inside)
            tl.store(gradient_trace, g, mask=inside)
            membrane += inner
            gradient_trace += inner
    return state, spikes, membrane, gradient_trace


@triton.jit(do_not_specialize=["chunks", "outer"])
def srm_scan_forward_kernel(
    current,
    spikes,
    membrane,
    gradient_trace,
    states,
    chunks: tl.int32,
    outer: tl.int64,
    inner: tl.int64,
    current_stride_outer: tl.int64,
    current_stride_time: tl.int64,
    current_stride_inner,
    constants,
    STORE_TRACE: tl.constexpr,
    STORE_STATES: tl.constexpr,
    SEVERAL_CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    accumulator: tl.constexpr = tl.float64 if current.dtype.element_ty == tl.float64 else tl.float32
    constants = launch.convert(constants, accumulator)
    rows, columns, inside = _neurons(outer, inner, BLOCK_OUTER, BLOCK_INNER)
    current += rows * current_stride_outer + columns * current_stride_inner
    steps = (chunks - 1).to(tl.int64) * CHUNK + REST
    output = rows * steps * inner + columns
    spikes += output
    if STORE_TRACE:
        membrane += output
        gradient_trace += output
    if STORE_STATES:
        states += rows * inner + columns

    zeros = tl.zeros((BLOCK_OUTER, BLOCK_INNER), accumulator)
    state = (zeros, zeros, zeros)
    if SEVERAL_CHUNKS:
        for _ in range(chunks - 1):
            state, spikes, membrane, gradient_trace = _forward_chunk(
                state, current, current_stride_time, spikes, membrane, gradient_trace, inner, inside,
                constants, STORE_TRACE, CHUNK,
            )  # fmt: skip
            current += CHUNK * current_stride_time
            if STORE_STATES:
                for i in tl.static_range(3):
                    tl.store(states, state[i], mask=inside)
                    states += outer * inner
    _forward_chunk(
        state, current, current_stride_time, spikes, membrane, gradient_trace, inner, inside,
        constants, STORE_TRACE, REST,
    )  # fmt: skip


@triton.jit
def _backward_chunk(
    responses,
    state,
    current,
    current_stride_time,
    grad_spikes,
    grad_stride_time,
    events,
    grad_weight_path,
    grad_time_path,
    output,
    inner,
    inside,
    constants,
    gradient_constants,
    LOAD_EVENTS: tl.constexpr,
    STORE_WEIGHT_PATH: tl.constexpr,
    STORE_TIME_PATH: tl.constexpr,
    STEPS: tl.constexpr,
):
    membrane_decay, synapse_decay, gradient_decay, amplitude, threshold = constants
    rise, smallest_change, smallest_trace = gradient_constants
    inputs = _load_steps(current, current_stride_time, inside, state[0].dtype, STEPS)
    grads = _load_steps(grad_spikes, grad_stride_time, inside, state[0].dtype, STEPS)

    # 1/Δu and 1/Δu_t, clamped, at each step; -1 in place of 1/Δu says that there is no spike.
    weight_slopes = ()
    time_slopes = ()
    for k in tl.static_range(STEPS):
        previous = amplitude * (state[0] - state[1])
        u, g, fired, state = _step(state, inputs[k], constants)
        event = fired
        if LOAD_EVENTS:
            event = tl.load(events + output, mask=inside, other=0.0) != 0.0
        change = u - previous
        slope = tl.where(change >= 0.0, 1.0 / tl.maximum(change, smallest_change), 0.0)
        weight_slopes = weight_slopes + (tl.where(event, slope, -1.0),)
        time_slopes = time_slopes + (tl.where(g >= 0.0, 1.0 / tl.maximum(g, smallest_trace), 0.0),)
        output += inner

    weight_response, synapse_response, time_response = responses
    for k in tl.static_range(STEPS - 1, -1, -1):
        output -= inner
        event = weight_slopes[k] >= 0.0
        if STORE_WEIGHT_PATH:
            weight = -weight_slopes[k] * grads[k]
            decayed = membrane_decay * weight_response + rise * synapse_response
            weight_response = tl.where(event, weight * rise, decayed)
            synapse_response = synapse_decay * tl.where(event, weight, synapse_response)
            tl.store(grad_weight_path + output, weight_response, mask=inside)
        if STORE_TIME_PATH:
            time = time_slopes[k] * grads[k]
            time_response = gradient_decay * tl.where(event, time, time_response)
            tl.store(grad_time_path + output, time_response, mask=inside)
    return weight_response, synapse_response, time_response


@triton.jit(do_not_specialize=["chunks", "outer"])
def srm_scan_backward_kernel(
    grad_spikes,
    current,
    states,
    events,
    grad_weight_path,
    grad_time_path,
    chunks: tl.int32,
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
    LOAD_EVENTS: tl.constexpr,
    STORE_WEIGHT_PATH: tl.constexpr,
    STORE_TIME_PATH: tl.constexpr,
    SEVERAL_CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    accumulator: tl.constexpr = tl.float64 if current.dtype.element_ty == tl.float64 else tl.float32
    constants = launch.convert(constants, accumulator)
    gradient_constants = launch.convert(gradient_constants, accumulator)
    rows, columns, inside = _neurons(outer, inner, BLOCK_OUTER, BLOCK_INNER)
    start = (chunks - 1).to(tl.int64) * CHUNK
    current += rows * current_stride_outer + columns * current_stride_inner + start * current_stride_time
    grad_spikes += rows * grad_stride_outer + columns * grad_stride_inner + start * grad_stride_time
    output = (rows * (start + REST) + start) * inner + columns

    # How a current at this step would move the next spike, for both paths, decaying backward in time.
    zeros = tl.zeros((BLOCK_OUTER, BLOCK_INNER), accumulator)
    responses = (zeros, zeros, zeros)
    state = (zeros, zeros, zeros)
    if SEVERAL_CHUNKS:
        states += rows * inner + columns + (chunks - 1).to(tl.int64) * 3 * outer * inner
        states, state = _load_state(states, outer * inner, inside)
    responses = _backward_chunk(
        responses, state, current, current_stride_time, grad_spikes, grad_stride_time, events, grad_weight_path,
        grad_time_path, output, inner, inside, constants, gradient_constants,
        LOAD_EVENTS, STORE_WEIGHT_PATH, STORE_TIME_PATH, REST,
    )  # fmt: skip
    if SEVERAL_CHUNKS:
        for chunk in range(chunks - 1):
            current -= CHUNK * current_stride_time
            grad_spikes -= CHUNK * grad_stride_time
            output -= CHUNK * inner
            states, state = _load_state(states, outer * inner, inside & (chunk < chunks - 2))
            responses = _backward_chunk(
                responses, state, current, current_stride_time, grad_spikes, grad_stride_time, events, grad_weight_path,
                grad_time_path, output, inner, inside, constants, gradient_constants,
                LOAD_EVENTS, STORE_WEIGHT_PATH, STORE_TIME_PATH, CHUNK,
            )  # fmt: skip


@triton.jit
def _load_state(states, neurons, mask):
    """The state at a chunk's start, from the pointer to the next one's; zeros where masked (before the first step)."""
    states -= 3 * neurons
    m = tl.load(states, mask=mask, other=0.0)
    s = tl.load(states + neurons, mask=mask, other=0.0)
    g = tl.load(states + 2 * neurons, mask=mask, other=0.0)
    return states, (m, s, g)


@dataclass(frozen=True)
class Tile:
    """How many neurons one program takes, and with how many warps."""

    block_outer: int
    block_inner: int
    num_warps: int

    def grid(self, outer: int, inner: int) -> tuple[int, int]:
        return triton.cdiv(inner, self.block_inner), triton.cdiv(outer, self.block_outer)


def choose_tile(outer: int, inner: int, elements_per_thread: int) -> Tile:
    """A tile that fills the device: narrow for small layers, rows of several samples where `inner` is short."""
    if launch.interpreted():  # a program costs the same whatever its size
        block, threads = 4096, 128
    else:
        threads = 32 if outer * inner < 16384 else 128
        block = threads * elements_per_thread
    block_inner = min(block, triton.next_power_of_2(inner))
    block_outer = min(block // block_inner, triton.next_power_of_2(outer))
    while triton.cdiv(outer, block_outer) > launch.MAX_GRID_Y:
        block_outer *= 2
    return Tile(block_outer, block_inner, threads // 32)


def split_time(steps: int) -> tuple[int, int]:
    """The number of chunks and the length of the last one."""
    chunks = triton.cdiv(steps, SRM_SCAN_CHUNK)
    return chunks, steps - (chunks - 1) * SRM_SCAN_CHUNK


def forward(
    current: torch.Tensor,
    spikes: torch.Tensor,
    membrane: torch.Tensor | None,
    gradient_trace: torch.Tensor | None,
    states: torch.Tensor | None,
    time_axis: int,
    constants: tuple[float, ...],
) -> None:
    """Fills `spikes`, and where given `membrane`, `gradient_trace` (all laid out alike) and `states`.

    `constants` are the decays of membrane, synapse and gradient, the amplitude and the threshold.

    `states` is [chunks - 1, 3, neurons]: membrane, synapse and gradient state at the start of each chunk but the first.
    """
    x = launch.outer_time_inner(current, spikes, time_axis)
    outer, steps, inner = x.shape
    chunks, rest = split_time(steps)
    tile = choose_tile(outer, inner, elements_per_thread=2)
    with launch.device_of(current):
        srm_scan_forward_kernel[tile.grid(outer, inner)](
            x,
            spikes,
            membrane,
            gradient_trace,
            states,
            chunks,
            outer,
            inner,
            *x.stride(),
            launch.scalars(current.dtype, constants),
            STORE_TRACE=membrane is not None,
            STORE_STATES=states is not None,
            SEVERAL_CHUNKS=chunks > 1,
            CHUNK=SRM_SCAN_CHUNK,
            REST=rest,
            BLOCK_OUTER=tile.block_outer,
            BLOCK_INNER=tile.block_inner,
            num_warps=tile.num_warps,
            enable_fp_fusion=False,
        )


def backward(
    grad_spikes: torch.Tensor,
    current: torch.Tensor,
    states: torch.Tensor | None,
    events: torch.Tensor | None,
    grad_weight_path: torch.Tensor | None,
    grad_time_path: torch.Tensor | None,
    time_axis: int,
    constants: tuple[float, ...],
    gradient_constants: tuple[float, ...],
) -> None:
    """Fills the gradients that are given, which are laid out alike; `events` has the shape of `current`."""
    layout = grad_weight_path if grad_weight_path is not None else grad_time_path
    x = launch.outer_time_inner(current, layout, time_axis)
    grad = launch.outer_time_inner(grad_spikes, layout, time_axis)
    if events is not None:
        events = launch.outer_time_inner(events, layout, time_axis).contiguous()
    outer, steps, inner = x.shape
    chunks, rest = split_time(steps)
    tile = choose_tile(outer, inner, elements_per_thread=1)
    with launch.device_of(current):
        srm_scan_backward_kernel[tile.grid(outer, inner)](
            grad,
            x,
            states,
            events,
            grad_weight_path,
            grad_time_path,
            chunks,
            outer,
            inner,
            *grad.stride(),
            *x.stride(),
            launch.scalars(current.dtype, constants),
            launch.scalars(current.dtype, gradient_constants),
            LOAD_EVENTS=events is not None,
            STORE_WEIGHT_PATH=grad_weight_path is not None,
            STORE_TIME_PATH=grad_time_path is not None,
            SEVERAL_CHUNKS=chunks > 1,
            CHUNK=SRM_SCAN_CHUNK,
            REST=rest,
            BLOCK_OUTER=tile.block_outer,
            BLOCK_INNER=tile.block_inner,
            num_warps=tile.num_warps,
            enable_fp_fusion=False,
        )
