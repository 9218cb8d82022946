"""Triton kernels of the SRM scan: a neuron a thread, time in chunks that are held in registers.

All loads of a chunk stand before the first use of one; the assembler may move some, but none behind the chunk's first
result. The backward keeps nothing but the input current: it recomputes each chunk, last to first, from the state that
the forward stored at the chunk's start. Neurons are counted in memory order without time, whatever their axes, so one
compiled kernel serves every shape, layout and constant; on AMD a second one serves launches with a tensor beyond 2 GB.
Equations and names: `srm_triton/ops/srm_scan.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from triton import language as tl

from . import SRM_SCAN_RISE, SRM_SCAN_RULES, launch, srm_scan_chunk
from .configurations import Configuration, Tunable
from .layout import NeuronOrder


@triton.jit
def _divide(n, divisor, reciprocal):
    """Quotient and rest; the compiler's own division of int64 is a function call, which takes a stack."""
    quotient = tl.umulhi(n.to(tl.uint64), reciprocal.to(tl.uint64)).to(tl.int64)  # one too small or exact
    rest = n - quotient * divisor
    return tl.where(rest < divisor, quotient, quotient + 1), tl.where(rest < divisor, rest, rest - divisor)


@triton.jit
def _load_constants(constants, n, channels, channels_reciprocal, channel_stride, channel_stride_reciprocal):
    constants += _divide(_divide(n, channel_stride, channel_stride_reciprocal)[0], channels, channels_reciprocal)[1]
    values = ()
    for row in tl.static_range(8):
        values = values + (tl.load(constants + row * channels),)
    return values


@triton.jit
def _load_state(pointer, n, neurons, mask, other):
    u = tl.load(pointer + n, mask=mask, other=other[0])
    s = tl.load(pointer + neurons + n, mask=mask, other=other[1])
    g = tl.load(pointer + 2 * neurons + n, mask=mask, other=other[2])
    return u, s, g


@triton.jit
def _store_state(pointer, n, neurons, mask, state):
    for i in tl.static_range(3):
        tl.store(pointer + i * neurons + n, state[i], mask=mask)


@triton.jit
def _select(mask, first, second):
    """Of two triples, per lane."""
    u = tl.where(mask, first[0], second[0])
    s = tl.where(mask, first[1], second[1])
    g = tl.where(mask, first[2], second[2])
    return u, s, g


@triton.jit
def _load_chunk(pointer, stride, steps_left, accumulator: tl.constexpr, CHUNK: tl.constexpr):
    values = ()
    for k in tl.static_range(CHUNK):
        values = values + (tl.load(pointer, mask=steps_left > k, other=0.0).to(accumulator),)
        pointer += stride
    return values


@triton.jit
def _step(state, x, constants):
    """Synaptic current, potential and trace before the reset, whether there is one, and the state behind it."""
    previous, s, g = state
    s = s + x
    u = constants[0] * previous + s * constants[3]
    g = (g + x) * constants[2]
    fired = u > constants[4]
    after = (tl.where(fired, 0.0, u), tl.where(fired, 0.0, s * constants[1]), tl.where(fired, 0.0, g))
    return s, u, g, fired, after


@triton.jit
def _slope(change, limit):
    """clamp(1/change, 0, limit), the limit for −0 too."""
    return tl.where(change >= 0.0, tl.minimum(1.0 / (change + 0.0), limit), 0.0)


@triton.jit
def _surrogate(v, sharpness, RULE: tl.constexpr):
    if RULE == 1:
        scaled = v * (sharpness * 3.141592653589793)
        spread = 1.0 + scaled * scaled
    else:
        scaled = 1.0 + tl.abs(v) * (sharpness * 2.0)
        spread = scaled * scaled
    return sharpness / spread


@triton.jit
def _bits(value):
    """Negative for −0 too."""
    return value.to(tl.int64 if value.dtype == tl.float64 else tl.int32, bitcast=True)


@triton.jit(
    do_not_specialize=[
        "steps", "neurons", "inner", "inner_reciprocal", "channels", "channels_reciprocal", "channel_stride",
        "channel_stride_reciprocal", "stride_outer", "stride_time", "stride_inner",
        "has_initial", "has_final", "has_checkpoints", "has_events",
    ],
    do_not_specialize_on_alignment=[
        "current", "constants", "initial", "spikes", "final", "checkpoints", "events", "membrane", "gradient_trace",
    ],
)  # fmt: skip
def srm_scan_forward_kernel(
    current,
    constants,
    initial,
    spikes,
    final,
    checkpoints,
    events,
    membrane,
    gradient_trace,
    steps: tl.int64,
    neurons: tl.int64,
    inner: tl.int64,
    inner_reciprocal: tl.uint64,
    channels: tl.int64,
    channels_reciprocal: tl.uint64,
    channel_stride: tl.int64,
    channel_stride_reciprocal: tl.uint64,
    stride_outer: tl.int64,
    stride_time: tl.int64,
    stride_inner: tl.int64,
    has_initial: tl.int32,
    has_final: tl.int32,
    has_checkpoints: tl.int32,
    has_events: tl.int32,
    RISE: tl.constexpr,
    STORE_TRACE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    accumulator: tl.constexpr = tl.float64 if current.dtype.element_ty == tl.float64 else tl.float32
    # lanes behind the last neuron repeat it
    n = tl.minimum(tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK), neurons - 1)
    row, column = _divide(n, inner, inner_reciprocal)
    values = _load_constants(constants, n, channels, channels_reciprocal, channel_stride, channel_stride_reciprocal)
    current += row * stride_outer + column * stride_inner
    output = row * steps * inner + column
    state = _load_state(initial, n, neurons, has_initial != 0, (0.0, 0.0, 0.0))
    last_rise = tl.full((BLOCK,), -1, tl.int32)
    any_fired = tl.zeros((BLOCK,), tl.int1)
    chunks = tl.cdiv(steps, CHUNK)
    for chunk in range(chunks):
        kept = checkpoints + (chunk - 1) * 3 * neurons
        _store_state(kept, n, neurons, (has_checkpoints != 0) & (chunk > 0), state)
        first = chunk * CHUNK
        steps_left = tl.minimum(steps - first, CHUNK).to(tl.int32)
        inputs = _load_chunk(current, stride_time, steps_left, accumulator, CHUNK)
        for k in tl.static_range(CHUNK):
            valid = steps_left > k
            _, u, g, fired, after = _step(state, inputs[k], values)
            # by way of float32, since the interpreter converts no boolean to bfloat16
            tl.store(spikes + output, fired.to(tl.float32).to(spikes.dtype.element_ty), mask=valid)
            if STORE_TRACE:
                tl.store(membrane + output, u, mask=valid)
                tl.store(gradient_trace + output, g, mask=valid)
            last_rise = tl.where(valid & (u - state[0] > RISE), (first + k).to(tl.int32), last_rise)
            any_fired = any_fired | (valid & fired)
            state = _select(valid, after, state)
            output += inner
        current += CHUNK * stride_time
    _store_state(final, n, neurons, has_final != 0, state)
    tl.store(events + n, tl.where(any_fired, -1, last_rise), mask=has_events != 0)


@triton.jit(
    do_not_specialize=[
        "steps", "neurons", "inner", "inner_reciprocal", "channels", "channels_reciprocal", "channel_stride",
        "channel_stride_reciprocal", "grad_stride_outer", "grad_stride_time",
        "grad_stride_inner", "stride_outer", "stride_time", "stride_inner",
        "has_grad_final", "has_initial", "has_events", "has_weight_path", "has_time_path", "has_grad_initial",
    ],
    do_not_specialize_on_alignment=[
        "grad_spikes", "grad_final", "current", "constants", "initial", "checkpoints", "events", "weight_path",
        "time_path", "grad_initial", "grad_constants",
    ],
)  # fmt: skip
def srm_scan_backward_kernel(
    grad_spikes,
    grad_final,
    current,
    constants,
    initial,
    checkpoints,
    events,
    weight_path,
    time_path,
    grad_initial,
    grad_constants,
    steps: tl.int64,
    neurons: tl.int64,
    inner: tl.int64,
    inner_reciprocal: tl.uint64,
    channels: tl.int64,
    channels_reciprocal: tl.uint64,
    channel_stride: tl.int64,
    channel_stride_reciprocal: tl.uint64,
    grad_stride_outer: tl.int64,
    grad_stride_time: tl.int64,
    grad_stride_inner: tl.int64,
    stride_outer: tl.int64,
    stride_time: tl.int64,
    stride_inner: tl.int64,
    has_grad_final: tl.int32,
    has_initial: tl.int32,
    has_events: tl.int32,
    has_weight_path: tl.int32,
    has_time_path: tl.int32,
    has_grad_initial: tl.int32,
    RULE: tl.constexpr,
    LEARN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    accumulator: tl.constexpr = tl.float64 if current.dtype.element_ty == tl.float64 else tl.float32
    # lanes behind the last neuron repeat it
    n = tl.minimum(tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK), neurons - 1)
    row, column = _divide(n, inner, inner_reciprocal)
    values = _load_constants(constants, n, channels, channels_reciprocal, channel_stride, channel_stride_reciprocal)
    membrane_decay, synapse_decay, gradient_decay, rise, threshold, membrane_limit, gradient_limit, sharpness = values
    chunks = tl.cdiv(steps, CHUNK)
    start = (chunks - 1) * CHUNK
    current += row * stride_outer + column * stride_inner + start * stride_time
    grad_spikes += row * grad_stride_outer + column * grad_stride_inner + start * grad_stride_time
    output = (row * steps + start + CHUNK) * inner + column
    event_step = tl.load(events + n, mask=has_events != 0, other=-1)
    to_u, to_s, to_g = _load_state(grad_final, n, neurons, has_grad_final != 0, (0.0, 0.0, 0.0))
    to_membrane_decay = tl.zeros((BLOCK,), accumulator)
    to_rise = tl.zeros((BLOCK,), accumulator)
    to_threshold = tl.zeros((BLOCK,), accumulator)
    for reverse in range(chunks):
        chunk = chunks - 1 - reverse
        first = chunk * CHUNK
        steps_left = tl.minimum(steps - first, CHUNK).to(tl.int32)
        start_state = _load_state(initial, n, neurons, (chunk == 0) & (has_initial != 0), (0.0, 0.0, 0.0))
        start_state = _load_state(checkpoints + (chunk - 1) * 3 * neurons, n, neurons, chunk > 0, start_state)
        inputs = _load_chunk(current, stride_time, steps_left, accumulator, CHUNK)
        grads = _load_chunk(grad_spikes, grad_stride_time, steps_left, accumulator, CHUNK)

        state = start_state
        slopes = ()  # with a sign where there is no spike: masks of all steps would fill AMD's scalar registers
        trace_slopes = ()
        before = ()
        synapses = ()
        for k in tl.static_range(CHUNK):
            previous = state[0]
            s, u, g, fired, state = _step(state, inputs[k], values)
            if RULE == 0 or RULE == 3:
                slope = _slope(u - previous, membrane_limit)
            else:
                slope = _surrogate(u - threshold, sharpness, RULE)
            slopes = slopes + (slope * tl.where(fired, 1.0, -1.0),)
            if RULE == 0:
                trace_slopes = trace_slopes + (_slope(g, gradient_limit),)
            if LEARN:
                before = before + (previous,)
                synapses = synapses + (s,)

        event_in_chunk = event_step - first.to(tl.int32)
        for k in tl.static_range(CHUNK - 1, -1, -1):
            output -= inner
            valid = steps_left > k
            fired = _bits(slopes[k]) >= 0
            w = grads[k] * tl.abs(slopes[k])
            r = tl.where(fired, 0.0, to_g)
            if RULE == 0 or RULE == 3:
                event = fired | (event_in_chunk == k)
                w = tl.where(event, w, 0.0)
                if RULE == 0:
                    r = tl.where(event, grads[k] * trace_slopes[k] + r, r)
            p = w + tl.where(fired, 0.0, to_u)
            q = tl.where(fired, 0.0, to_s)
            weight = p * rise + q * synapse_decay
            of_trace = r * gradient_decay
            time = (p - q) * rise if RULE == 3 else of_trace
            tl.store(weight_path + output, weight.to(weight_path.dtype.element_ty), mask=valid & (has_weight_path != 0))
            tl.store(time_path + output, time.to(time_path.dtype.element_ty), mask=valid & (has_time_path != 0))
            if LEARN:
                to_membrane_decay += tl.where(valid & (p != 0.0), p * before[k], 0.0)
                to_rise += tl.where(valid & (p != q), (p - q) * synapses[k], 0.0)
                to_threshold -= tl.where(valid, w, 0.0)
            to_u, to_s, to_g = _select(valid, (p * membrane_decay, weight, of_trace), (to_u, to_s, to_g))
        # 1 > chunk in the first chunk; behind the loop, `n` would fit in no register
        if_first = (has_grad_initial > chunk) & (has_grad_initial != 0)
        _store_state(grad_initial, n, neurons, if_first, (to_u, to_s, to_g))
        current -= CHUNK * stride_time
        grad_spikes -= CHUNK * grad_stride_time
    if LEARN:
        _store_state(grad_constants, n, neurons, True, (to_membrane_decay, to_rise, to_threshold))


def _neuron_a_thread(warp: int | None, *_: Any) -> list[Configuration]:
    if warp is None:
        return [Configuration(4096, 4)]
    return [Configuration(block, max(block // warp, 1)) for block in (128, 32, 64, 256)]


def _up_to_two_a_thread(warp: int | None, *_: Any) -> list[Configuration]:  # more than the backward's registers hold
    two = [] if warp is None else [Configuration(128, 64 // warp), Configuration(256, 128 // warp)]
    return _neuron_a_thread(warp) + two


_SIZES = "T ≤ {}, neurons ≤ 2^{}"
FORWARD = Tunable("srm_scan_forward", _SIZES, _up_to_two_a_thread)
BACKWARD = Tunable("srm_scan_backward", _SIZES, _neuron_a_thread)


class _Neurons(NeuronOrder):
    """How kernels see the tensors of a scan."""

    def __init__(self, current: torch.Tensor, like: torch.Tensor, constants: torch.Tensor, time_axis: int) -> None:
        super().__init__(like, time_axis, constants.shape[1])
        self.current = self.sequence(current)
        outer, self.steps, inner = self.current.shape
        divisors = inner, self.channels, self.channel_stride
        self.sizes = self.steps, outer * inner, *(each for size in divisors for each in (size, (2**64 - 1) // size))

    def run(
        self,
        kernel: Any,
        *arguments: Any,
        tunable: Tunable,
        configuration: Configuration | None,
        outputs: Sequence[torch.Tensor | None],
        **constants: Any,
    ) -> None:
        """Launches a kernel over all neurons; `outputs` are those of its arguments that it fills."""
        steps, neurons, *_ = self.sizes
        chunk = srm_scan_chunk(steps, self.current.itemsize)
        kernel = launch.for_sizes_of(kernel, arguments)

        def start(configuration: Configuration) -> None:
            kernel[triton.cdiv(neurons, configuration.block),](
                *arguments,
                **constants,
                CHUNK=chunk,
                BLOCK=configuration.block,
                num_warps=configuration.num_warps,
                enable_fp_fusion=False,
            )

        with launch.device_of(self.current):
            if configuration is None:
                size_class = chunk if steps <= chunk else math.inf, (neurons - 1).bit_length()
                configuration = tunable.choose(self.current, size_class, start, outputs)
            start(configuration)


def forward(
    current: torch.Tensor,
    constants: torch.Tensor,
    initial: torch.Tensor | None,
    spikes: torch.Tensor,
    final: torch.Tensor,
    checkpoints: torch.Tensor,
    events: torch.Tensor,
    membrane: torch.Tensor | None,
    gradient_trace: torch.Tensor | None,
    time_axis: int,
    configuration: Configuration | None = None,
) -> None:
    """Fills `spikes` and, where they have elements, the others; `membrane` and `gradient_trace` are laid out alike.

    Without a `configuration`, the tuned or the usual one serves. Tensors are those of `srm_triton/ops/srm_scan.py`.
    """
    neurons = _Neurons(current, spikes, constants, time_axis)
    results = (final, 1), (checkpoints, 2), (events, 0)
    flat = [neurons.flat(*result) for result in results]
    neurons.run(
        srm_scan_forward_kernel,
        neurons.current,
        constants.contiguous(),
        constants if initial is None else neurons.flat(initial, 1),
        spikes,
        *flat,
        membrane,
        gradient_trace,
        *neurons.sizes,
        *neurons.current.stride(),
        *map(int, (initial is not None, *(tensor.numel() > 0 for tensor, _ in results))),
        RISE=SRM_SCAN_RISE,
        STORE_TRACE=membrane is not None,
        tunable=FORWARD,
        configuration=configuration,
        outputs=[spikes, *flat, membrane, gradient_trace],
    )
    for filled, (tensor, leading) in zip(flat, results, strict=True):
        neurons.hand_over(filled, tensor, leading)


def backward(
    grad_spikes: torch.Tensor,
    grad_final: torch.Tensor | None,
    current: torch.Tensor,
    constants: torch.Tensor,
    initial: torch.Tensor | None,
    checkpoints: torch.Tensor,
    events: torch.Tensor,
    weight_path: torch.Tensor,
    time_path: torch.Tensor,
    grad_initial: torch.Tensor,
    grad_constants: torch.Tensor,
    time_axis: int,
    rule: str,
    configuration: Configuration | None = None,
) -> None:
    """Fills those of the last four tensors that have elements; `grad_constants` is [3, *neurons], of a_m, 1/τ_s and θ.

    Both paths are laid out alike. Without a `configuration`, the tuned or the usual one serves.
    """
    like = next((path for path in (weight_path, time_path) if path.numel()), torch.empty_like(current))
    neurons = _Neurons(current, like, constants, time_axis)
    grads = neurons.sequence(grad_spikes)
    results = (grad_initial, 1), (grad_constants, 1)
    flat = [neurons.flat(*result) for result in results]
    neurons.run(
        srm_scan_backward_kernel,
        grads,
        constants if grad_final is None else neurons.flat(grad_final, 1),
        neurons.current,
        constants.contiguous(),
        constants if initial is None else neurons.flat(initial, 1),
        neurons.flat(checkpoints, 2),
        neurons.flat(events, 0),
        weight_path,
        time_path,
        *flat,
        *neurons.sizes,
        *grads.stride(),
        *neurons.current.stride(),
        *map(int, (grad_final is not None, initial is not None)),
        *(int(tensor.numel() > 0) for tensor in (events, weight_path, time_path, grad_initial)),
        RULE=SRM_SCAN_RULES[rule],
        LEARN=grad_constants.numel() > 0,
        tunable=BACKWARD,
        configuration=configuration,
        outputs=[weight_path, time_path, *flat],
    )
    for filled, (tensor, leading) in zip(flat, results, strict=True):
        neurons.hand_over(filled, tensor, leading)
