"""The spike response model (SRM) neuron over time, with two gradients.

Constants (`SRMParameters`), each one value or one for each channel: membrane, synapse and gradient decay a = 1 − 1/τ
and the threshold θ. State (u, s, g): membrane potential, synaptic current, gradient trace; 0 at the start or handed in.
From an input current x[t], for t = 0 … T−1:

    previous = u
    s ← s + x          u ← a_m·u + s/τ_s          s ← a_s·s          g ← a_g·(g + x)
    spike[t] = u > θ          Δu[t] = u − previous          Δu_t[t] = g
    at a spike: u = s = g = 0

Backward, for t = T−1 … 0, with λ = (λ_u, λ_s, λ_g) the gradient of the state that step t leaves, 0 at the end or handed
in. The reset is not differentiated: before it, where a spike is, λ counts as 0. `grad` is ∂L/∂spike[t]:

    "event":      w = grad·clamp(1/Δu, 0, limit) and v = grad·clamp(1/Δu_t, 0, κ) at a spike, else both 0
    "original":   w as for "event", v = 0
    "surrogate":  w = grad·h(u − θ) at every step, v = 0

    p = w + λ_u        q = λ_s        r = v + λ_g
    weight path[t] = p/τ_s + a_s·q         what computes the current receives it
    time path[t]   = a_g·r, "original" (p − q)/τ_s; spikes of the layer before receive it, through the map's transpose
    λ ← (a_m·p, weight path[t], a_g·r)

    ∂L/∂a_m = Σ p·previous        ∂L/∂(1/τ_s) = Σ (p − q)·(s + x), as a_s = 1 − 1/τ_s        ∂L/∂θ = −Σ w

The event-driven gradient is a rule for spike times, k steps from t to the next spike: the weight path is
w·c·(a_m^(k+1) − a_s^(k+1)) with c = τ_m/(τ_m − τ_s), the time path v·a_g^(k+1). Source: Zhu et al., "Training Spiking
Neural Networks with Event-driven Backpropagation", NeurIPS 2022, and "Exploring Loss Functions for Time-based Training
Strategy in Spiking Neural Networks", NeurIPS 2023, who hand ∂L/∂(spike time) from layer to layer. Here the sign of the
weight path is turned, so that a loss on spikes trains downhill, and u is carried in place of c·(m − s), which cancels.

The trace of τ_g stands for the response of the potential to an input spike, ε[k] = c·(a_m^k − a_s^k). The gradient that
the published code calls "original" keeps the response: its time path is w·(ε[k+1] − ε[k]), what a spike a step earlier
would change. With it the rule becomes the derivative of spike times as steps get small (`srm-triton audit`).

An output neuron that stays silent would learn nothing: with `output`, in the backward only, it counts as firing at the
last step at which Δu > 0.05.

The surrogate gradient is backpropagation through time (Neftci et al., IEEE Signal Processing Magazine 2019) with
h(v) = β/(1 + (π·β·v)²), "arctan", or h(v) = β/(1 + 2·β·|v|)², "fast_sigmoid", of sharpness β and integral 1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.checks import check_option, check_tensor, time_axes
from srm_triton.functions import Function, Gradients, custom_op, fake_of, once_differentiable, transforms_active
from srm_triton.kernels import SRM_SCAN_RISE, native, srm_scan_chunk
from srm_triton.kernels.layout import accumulator_dtype
from srm_triton.parameters import (
    NAMES,
    SRMParameters,
    SRMState,
    check_parameters,
    check_shape,
    stack_state,
    unstack_state,
)

_LEARNED = 0, 3, 4  # rows of a_m, 1/τ_s and θ in the constants

Gradient = Literal["event", "original", "surrogate"]
Surrogate = Literal["arctan", "fast_sigmoid"]

# Eager reference: on tensors whose first axis is time, with constants that broadcast over the neurons of a step


class Constants(NamedTuple):
    """The rows that `SRMParameters.pack` makes, each [1 or channels, 1, …]."""

    membrane_decay: Tensor
    synapse_decay: Tensor
    gradient_decay: Tensor
    rise: Tensor  # 1/τ_s
    threshold: Tensor
    membrane_slope_limit: Tensor
    gradient_slope_limit: Tensor
    sharpness: Tensor


class Step(NamedTuple):
    """What a step finds, by the names of the equations."""

    previous: Tensor
    synapse: Tensor  # s + x
    membrane: Tensor
    gradient_trace: Tensor
    spike: Tensor
    state: SRMState  # that it leaves


def take_steps(current: Tensor, state: SRMState, c: Constants) -> Iterator[Step]:
    """The steps of the forward, one after another, from a state."""
    for x in current:
        previous, s, g = state
        s = s + x
        u = c.membrane_decay * previous + s * c.rise
        g = (g + x) * c.gradient_decay
        spike = u > c.threshold
        state = SRMState(*(value.masked_fill(spike, 0) for value in (u, s * c.synapse_decay, g)))
        yield Step(previous, s, u, g, spike, state)


def _slope(change: Tensor, limit: Tensor) -> Tensor:
    return (1 / (change + 0.0)).clamp(min=torch.zeros_like(limit), max=limit)  # 0 is added for what is −0


def _surrogate(v: Tensor, sharpness: Tensor, surrogate: str) -> Tensor:
    if surrogate == "arctan":
        return sharpness / (1 + (v * (sharpness * math.pi)).square())
    return sharpness / (1 + v.abs() * (sharpness * 2)).square()


def _reference_backward(
    grad_spikes: Tensor, steps: list[Step], grad_state: SRMState, events: Tensor, c: Constants, gradient: str
) -> tuple[Tensor, Tensor, SRMState, Tensor]:
    """Both paths, the gradients of the initial state, and for each neuron those of a_m, 1/τ_s and θ."""
    weight_path, time_path, constants = [], [], torch.zeros(3, *events.shape, dtype=c.rise.dtype, device=events.device)
    for t in reversed(range(len(steps))):
        previous, synapse, u, g, spike, _ = steps[t]
        event = spike | (events == t)
        if gradient in ("event", "original"):
            w = torch.where(event, grad_spikes[t] * _slope(u - previous, c.membrane_slope_limit), 0)
        else:
            w = grad_spikes[t] * _surrogate(u - c.threshold, c.sharpness, gradient)
        traced = event if gradient == "event" else torch.zeros_like(event)
        v = torch.where(traced, grad_spikes[t] * _slope(g, c.gradient_slope_limit), 0)
        later = SRMState(*(grad.masked_fill(spike, 0) for grad in grad_state))
        p, q, r = w + later.membrane, later.synapse, v + later.gradient_trace
        weight_path.append(p * c.rise + q * c.synapse_decay)
        time_path.append((p - q) * c.rise if gradient == "original" else r * c.gradient_decay)
        grad_state = SRMState(p * c.membrane_decay, weight_path[-1], r * c.gradient_decay)
        constants += torch.stack((_product(p, previous), _product(p - q, synapse), -w))
    return torch.stack(weight_path[::-1]), torch.stack(time_path[::-1]), grad_state, constants


def _product(gradient: Tensor, value: Tensor) -> Tensor:
    return torch.where(gradient == 0, 0, gradient * value)  # 0 where the value is not finite too


def _reference_events(steps: list[Step]) -> Tensor:
    """The last step with Δu > 0.05 of each neuron that never fires; −1 where there is none."""
    last = torch.full_like(steps[0].spike, -1, dtype=torch.int32)
    for t, step in enumerate(steps):
        last = torch.where(step.membrane - step.previous > SRM_SCAN_RISE, t, last)
    return last.masked_fill(torch.stack([step.spike for step in steps]).any(0), -1)


def prepare_scan(
    current: Tensor, constants: Tensor, initial: Tensor | None, time_axis: int
) -> tuple[Tensor, SRMState, Constants]:
    """What `take_steps` takes, from the arguments of the custom ops."""
    x = current.movedim(time_axis, 0).to(constants.dtype)
    state = torch.zeros_like(x[:1]).expand(3, *x.shape[1:]) if initial is None else initial
    behind = max(0, x.dim() - 3)
    return x, unstack_state(state), Constants(*constants.view(*constants.shape, *[1] * behind).unbind(0))


# Custom ops. `constants` is [8, 1 or channels], a state
# [3, *neurons] with the neurons of a step, which are the axes of the current but time.


class Scanned(NamedTuple):
    """What a scan returns; None for what was not asked for."""

    spikes: Tensor
    final: Tensor | None = None
    """The state after the last step."""
    events: Tensor | None = None
    """The steps, int32 [*neurons], at which silent neurons count as firing in the backward, −1 for none."""
    checkpoints: Tensor | None = None
    """The states at the start of every chunk of time but the first, from which the Triton backward restarts."""

    @classmethod
    def of(cls, results: Sequence[Tensor], asked: Sequence[bool]) -> "Scanned":
        """What the op returns, by name."""
        final = results[1] if asked[0] else None
        events = results[1 + asked[0]] if asked[1] else None
        count = 1 + asked[0] + asked[1]
        return cls(results[0], final, events, results[count] if len(results) > count else None)


@custom_op("srm_scan")
def _scan(
    current: Tensor,
    constants: Tensor,
    initial: Tensor | None,
    time_axis: int,
    asked: Sequence[bool],
    spike_dtype: torch.dtype | None,
    backend: str,
) -> list[Tensor]:
    """Spikes and, as far as they are `asked` for, the final state and events; checkpoints if the backend has them."""
    outputs = _allocate_scan(current, constants, initial, time_axis, asked, spike_dtype, backend)
    spikes, final, events, checkpoints = Scanned.of(outputs, asked)
    if current.numel() == 0:
        if final is not None:
            _unchanged(initial, final)
        if events is not None:
            events.fill_(-1)
        return outputs
    chosen = resolve_backend(current.device, backend, has_native=True)
    if chosen == "triton":
        from srm_triton.kernels import srm_scan as kernel

        found = _or_empty(final, constants), _or_empty(checkpoints, constants), _or_empty(events, current, torch.int32)
        kernel.forward(current, constants, initial, spikes, *found, None, None, time_axis)
    elif chosen == "native":
        native.scan_forward(current, constants, initial, spikes, final, events, None, None, time_axis)
    else:
        steps = list(take_steps(*prepare_scan(current, constants, initial, time_axis)))
        spikes.copy_(torch.stack([step.spike for step in steps], time_axis))
        if final is not None:
            final.copy_(torch.stack(tuple(steps[-1].state)))
        if events is not None:
            events.copy_(_reference_events(steps))
    return outputs


@fake_of(_scan)
def _allocate_scan(
    current: Tensor,
    constants: Tensor,
    initial: Tensor | None,
    time_axis: int,
    asked: Sequence[bool],
    spike_dtype: torch.dtype | None,
    backend: str,
) -> list[Tensor]:
    of_state, of_events, kept = asked
    outputs = [torch.empty_like(current, dtype=spike_dtype)]
    if of_state:
        outputs.append(constants.new_empty((3, *_neurons(current, time_axis))))
    if of_events:
        outputs.append(current.new_empty(_neurons(current, time_axis), dtype=torch.int32))
    if kept and resolve_backend(current.device, backend) == "triton":
        steps = current.shape[time_axis]
        chunks = -(-steps // srm_scan_chunk(steps, current.itemsize)) - 1 if steps else 0
        outputs.append(constants.new_empty((chunks, 3, *_neurons(current, time_axis))))
    return outputs


def _neurons(current: Tensor, time_axis: int) -> tuple[int, ...]:
    return *current.shape[:time_axis], *current.shape[time_axis + 1 :]


def _unchanged(initial: Tensor | None, final: Tensor) -> Tensor:
    """The final state of no steps."""
    return final.zero_() if initial is None else final.copy_(initial)


def _or_empty(tensor: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """As Triton's launchers take it: a tensor without elements stands for none."""
    return like.new_empty(0, dtype=dtype) if tensor is None else tensor


@custom_op("srm_trace")
def _trace(
    current: Tensor, constants: Tensor, initial: Tensor | None, time_axis: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, membrane potential and gradient trace."""
    outputs = _allocate_trace(current)
    spikes, membrane, gradient_trace = outputs
    if current.numel() == 0:
        return outputs
    chosen = resolve_backend(current.device, backend, has_native=True)
    if chosen == "triton":
        from srm_triton.kernels import srm_scan as kernel

        unused, no_events = membrane.new_empty(0), membrane.new_empty(0, dtype=torch.int32)
        kernel.forward(
            current, constants, initial, spikes, unused, unused, no_events, membrane, gradient_trace, time_axis
        )
    elif chosen == "native":
        native.scan_forward(current, constants, initial, spikes, None, None, membrane, gradient_trace, time_axis)
    else:
        for t, step in enumerate(take_steps(*prepare_scan(current, constants, initial, time_axis))):
            spikes.select(time_axis, t).copy_(step.spike)
            membrane.select(time_axis, t).copy_(step.membrane)
            gradient_trace.select(time_axis, t).copy_(step.gradient_trace)
    return outputs


@fake_of(_trace)
def _allocate_trace(current: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    wide, spikes = accumulator_dtype(current.dtype), torch.empty_like(current)
    return spikes, torch.empty_like(spikes, dtype=wide), torch.empty_like(spikes, dtype=wide)


@custom_op("srm_scan_backward")
def _scan_backward(
    grad_spikes: Tensor,
    grad_final: Tensor | None,
    current: Tensor,
    constants: Tensor,
    initial: Tensor | None,
    events: Tensor | None,
    checkpoints: Tensor | None,
    time_axis: int,
    gradient: str,
    asked: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight path, time path, gradients of the initial state and of the constants, as far as they are `asked` for.

    The others have no elements; a list would not run where PyTorch batches gradients.
    """
    scanned = current, constants, initial, events, checkpoints
    outputs = _allocate_backward(grad_spikes, grad_final, *scanned, time_axis, gradient, asked, backend)
    weight_path, time_path, grad_initial, grad_constants = by_name(outputs, asked)
    if current.numel() == 0:
        if grad_initial is not None:
            _unchanged(grad_final, grad_initial)
        if grad_constants is not None:
            grad_constants.zero_()
        return outputs
    neurons = _neurons(current, time_axis)
    sums = None if grad_constants is None else constants.new_empty((3, *neurons))
    results = weight_path, time_path, grad_initial, sums
    gradients = grad_spikes, grad_final
    chosen = resolve_backend(current.device, backend, has_native=True)
    if chosen == "triton":
        from srm_triton.kernels import srm_scan as kernel

        kept = _or_empty(checkpoints, constants), _or_empty(events, current, torch.int32)
        paths = (_or_empty(path, current) for path in results[:2])
        others = (_or_empty(result, constants) for result in results[2:])
        kernel.backward(*gradients, current, constants, initial, *kept, *paths, *others, time_axis, gradient)
    elif chosen == "native":
        native.scan_backward(*gradients, current, constants, initial, events, *results, time_axis, gradient)
    else:
        x, state, c = prepare_scan(current, constants, initial, time_axis)
        grad = grad_spikes.movedim(time_axis, 0).to(constants.dtype)
        grad_state = unstack_state(torch.zeros_like(torch.stack(state)) if grad_final is None else grad_final)
        if events is None:
            events = torch.full(neurons, -1, dtype=torch.int32, device=current.device)
        found = _reference_backward(grad, list(take_steps(x, state, c)), grad_state, events, c, gradient)
        values = found[0].movedim(0, time_axis), found[1].movedim(0, time_axis), torch.stack(found[2]), found[3]
        for result, value in zip(results, values, strict=True):
            if result is not None:
                result.copy_(value)
    if grad_constants is not None and sums is not None:
        behind = [axis for axis in range(1, sums.dim()) if axis != 2 or constants.shape[1] == 1]
        grad_constants.zero_()
        for row, value in zip(_LEARNED, sums.sum(behind), strict=True):
            grad_constants[row] = value
    return outputs


def by_name(results: Sequence[Tensor], asked: Sequence[bool]) -> list[Any]:
    """What `_scan_backward` returns, None for what was not `asked` for."""
    return [result if wanted else None for result, wanted in zip(results, asked, strict=True)]


@fake_of(_scan_backward)
def _allocate_backward(
    grad_spikes: Tensor, grad_final: Tensor | None, current: Tensor, constants: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, time_axis, _, asked, _ = others
    return (
        torch.empty_like(current) if asked[0] else current.new_empty(0),
        torch.empty_like(current) if asked[1] else current.new_empty(0),
        constants.new_empty((3, *_neurons(current, time_axis)) if asked[2] else 0),
        torch.empty_like(constants) if asked[3] else constants.new_empty(0),
    )


def _map(op: Any, channel_axes: Sequence[int], result_axes: Callable[..., Sequence[int | None]]) -> None:
    """Teaches an op to run under `torch.vmap`: the mapped neurons stand side by side, as more channels of one scan.

    Args:
        op: the op, whose first arguments are tensors.
        channel_axes: where each of these has its channels, if it has any.
        result_axes: the same of the results, given the other arguments; −1 for the gradient of the constants, None for
            one without elements.
    """
    position = 2 if op is _scan_backward else 0  # of the current; the constants come next

    def mapped(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        size, count = info.batch_size, len(channel_axes)
        tensors = [
            one if one is None else one.expand(size, *one.shape) if dim is None else one.movedim(dim, 0)
            for one, dim in zip(arguments[:count], in_dims[:count], strict=True)
        ]
        current, constants = (one for one in tensors[position : position + 2] if one is not None)
        channels = current.shape[3] if current.dim() > 3 else 1
        tensors[position + 1] = constants.expand(-1, -1, channels)

        def join(tensor: Tensor | None, axis: int) -> Tensor | None:
            if tensor is None:
                return None
            tensor = tensor.movedim(0, axis)
            return tensor.flatten(axis, axis + 1) if tensor.dim() > axis + 1 else tensor

        results = op(*map(join, tensors, channel_axes), *arguments[count:])
        kind = type(results)
        results, axes = list(results), result_axes(*arguments[count:])[: len(results)]
        places = [1 if axis == -1 else axis for axis in axes]
        for number, (axis, place) in enumerate(zip(axes, places, strict=True)):
            if axis is not None and (current.dim() > 3 or axis == -1):
                results[number] = results[number].unflatten(place, (size, channels))
            if axis == -1 and constants.shape[2] == 1:
                results[number] = results[number].sum(2, keepdim=True)
        return kind(results), kind(places)

    torch.library.register_vmap(op, mapped)


def _axes_of_paths(time_axis: int, gradient: str, asked: Sequence[bool], backend: str) -> list[int | None]:
    return [axis if wanted else None for axis, wanted in zip((2, 2, 2, -1), asked, strict=True)]


_map(_scan, (2, 1, 2), lambda time_axis, asked, spike_dtype, backend: [2, *[2] * asked[0], *[1] * asked[1], 3])
_map(_trace, (2, 1, 2), lambda time_axis, backend: (2, 2, 2))
_map(_scan_backward, (2, 2, 2, 1, 2, 1, 3), _axes_of_paths)


class Scan(NamedTuple):
    """How a scan runs, the same in both directions."""

    time_axis: int
    rule: str
    output: bool
    return_state: bool
    keep: bool  # what the backward needs
    spike_dtype: torch.dtype | None  # that of the current for None
    backend: str

    @property
    def asked(self) -> list[bool]:
        """What the op is asked for beside the spikes."""
        counts_silent = self.keep and self.output and self.rule in ("event", "original")
        return [self.return_state, counts_silent, self.keep]

    def forward(self, current: Tensor, constants: Tensor, initial: Tensor | None) -> list[Tensor]:
        """What `_scan` returns.

        Raises:
            RuntimeError: if a backward may follow, and the spikes are of a type without gradients.
        """
        if self.keep and self.spike_dtype == torch.uint8:
            raise RuntimeError(
                "spike_dtype=torch.uint8 passes no gradient: call within torch.no_grad() or torch.inference_mode(), or "
                "train with spike_dtype=torch.bfloat16 or None"
            )
        results: list[Tensor] = _scan(
            current, constants, initial, self.time_axis, self.asked, self.spike_dtype, self.backend
        )
        return results

    def backward(
        self,
        gradients: Sequence[Tensor | None],
        current: Tensor,
        constants: Tensor,
        initial: Tensor | None,
        kept: Sequence[Tensor],
        asked: list[bool],
    ) -> list[Any]:
        """Weight path, time path, gradients of the initial state and of the constants, None for those not `asked` for.

        Args:
            gradients: of the spikes, and of the final state if there is one.
            current: what was scanned; likewise the next two.
            constants: see `current`.
            initial: see `current`.
            kept: what `forward` returned behind the final state.
            asked: for each result, whether it is wanted.
        """
        grad_spikes = gradients[0]
        if grad_spikes is None:
            grad_spikes = current.new_zeros(()).expand_as(current)
        counts_silent = self.asked[1]
        events = kept[0] if counts_silent else None
        checkpoints = kept[counts_silent] if len(kept) > counts_silent else None
        results = _scan_backward(
            grad_spikes,
            gradients[1] if self.return_state else None,
            current,
            constants,
            initial,
            events,
            checkpoints,
            self.time_axis,
            self.rule,
            asked,
            self.backend,
        )
        return by_name(results, asked)


class _Scan(Function):
    traceable = False

    @staticmethod
    def forward(
        current: Tensor, earlier: Tensor | None, constants: Tensor, initial: Tensor | None, scan: Scan
    ) -> tuple[Tensor, ...]:
        return tuple(scan.forward(current, constants, initial))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        current, _, constants, initial, ctx.scan = inputs
        kept = output[1 + ctx.scan.return_state :]
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(current, constants, initial, *kept)

    @staticmethod
    @once_differentiable("srm_scan")
    def backward(ctx: Any, saved: tuple[Tensor, ...], *gradients: Tensor | None) -> Gradients:
        current, constants, initial, *kept = saved
        of_current, of_earlier, of_constants, of_initial = ctx.needs_input_grad[:4]
        asked = [of_current, of_earlier, of_initial, of_constants]
        given = ctx.scan.backward(gradients, current, constants, initial, kept, asked)
        return given[0], given[1], given[3], given[2], None


# Public functions


class SRMTrace(NamedTuple):
    """What the neurons do at each step; every tensor has the shape of the input current."""

    spikes: Tensor
    """1 where the neuron fires, else 0, in the dtype of the current."""
    membrane: Tensor
    """Membrane potential u before the reset, in float64 for float64 currents, else float32 (as the two below)."""
    membrane_change: Tensor
    """Δu, the rise of the potential since the previous step."""
    gradient_trace: Tensor
    """Δu_t, the rate of change that the gradient to earlier spike times divides by."""


@overload
def srm_scan(
    current: Tensor,
    parameters: SRMParameters | None = None,
    state: SRMState | None = None,
    *,
    gradient: Gradient = "event",
    surrogate: Surrogate = "arctan",
    output: bool = False,
    return_state: Literal[False] = False,
    spike_dtype: torch.dtype | None = None,
    batch_first: bool = True,
) -> Tensor: ...


@overload
def srm_scan(
    current: Tensor,
    parameters: SRMParameters | None = None,
    state: SRMState | None = None,
    *,
    gradient: Gradient = "event",
    surrogate: Surrogate = "arctan",
    output: bool = False,
    return_state: Literal[True],
    spike_dtype: torch.dtype | None = None,
    batch_first: bool = True,
) -> tuple[Tensor, SRMState]: ...


def srm_scan(
    current: Tensor,
    parameters: SRMParameters | None = None,
    state: SRMState | None = None,
    *,
    gradient: Gradient = "event",
    surrogate: Surrogate = "arctan",
    output: bool = False,
    return_state: bool = False,
    spike_dtype: torch.dtype | None = None,
    batch_first: bool = True,
) -> Tensor | tuple[Tensor, SRMState]:
    """Runs SRM neurons over time: input current in, spikes out.

    The gradient that reaches `current` is the weight path of the rule (see the module's equations), with the event rule
    right for whatever computes the current from parameters or from values. A layer that also hands gradients to the
    times of earlier spikes needs the time path too; the layers join both.

    Constants and state receive gradients where they require them. A sequence may come in pieces, each with the state
    that the one before returned: spikes and gradients are those of the whole. `state.detach()` truncates. With
    `output`, whether a neuron stays silent is seen in each piece alone.

    Args:
        current: input current, [batch, time, channels, ...] with any feature shape, none too, float64, float32, float16
            or bfloat16, any strides. It is computed in float64 for float64, else in float32.
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        state: what the neurons begin with, each tensor [batch, channels, ...] in the type of computation; None for 0.
        gradient: ``"event"``, the rule for spike times; ``"original"``, the same with another time path; or
            ``"surrogate"``, backpropagation through time.
        surrogate: ``"arctan"`` or ``"fast_sigmoid"``, the derivative that stands for that of a spike.
        output: whether the event rule counts neurons that stay silent as firing once, in the backward only; for the
            neurons that a loss looks at.
        return_state: whether to return the state after the last step too. A loss on the state has its gradient with
            respect to the current; with the event rule it passes no spike, so it trains the last layer only.
        spike_dtype: of the spikes: ``torch.bfloat16`` or ``torch.float16``, with gradients that autograd rounds to it,
            or ``torch.uint8``, without; None for that of the current.
        batch_first: False for [time, batch, channels, ...].

    Returns:
        Spikes, 0 or 1, in the shape of `current`, and with `return_state` the state. A current that is NaN
        silences its own neuron from that step on. Axes of length 0 give an empty result.

    Raises:
        TypeError: for a current or state that is not a floating-point tensor of the right dtype, or other parameters.
        ValueError: for shapes, devices or layouts that do not fit, or another option.
        RuntimeError: for spikes in uint8 where a gradient is wanted.

    Example:
        >>> spikes, state = srm_scan(torch.tensor([[0.5, 1.5]]), return_state=True)
        >>> srm_scan(torch.tensor([[1.5, 1.5]]), state=state)
        tensor([[1., 0.]])
    """
    return scan(
        current,
        None,
        check_parameters(parameters),
        state,
        rule=check_gradient(gradient, surrogate),
        output=output,
        return_state=return_state,
        spike_dtype=check_spike_dtype(spike_dtype),
        batch_first=batch_first,
    )


def scan(
    current: Tensor,
    earlier: Tensor | None,
    parameters: SRMParameters,
    state: SRMState | None,
    *,
    rule: str,
    output: bool,
    return_state: bool,
    batch_first: bool,
    spike_dtype: torch.dtype | None = None,
) -> Any:
    """`srm_scan` for layers: `earlier`, shaped like the current, receives the time path; rule and dtype are checked."""
    for name, flag in (("output", output), ("return_state", return_state), ("batch_first", batch_first)):
        if flag is not True and flag is not False:
            raise ValueError(f"{name} must be True or False, got {flag!r}")
    initial, constants, time_axis = check_scan(current, parameters, state, batch_first)
    keep = needs_gradient(current, earlier, constants, initial)
    how = Scan(time_axis, rule, output, return_state, keep, spike_dtype, requested_backend())
    if keep:
        results: Sequence[Tensor] = _Scan.apply(current, earlier, constants, initial, how)
    else:
        results = how.forward(current, constants, initial)
    return (results[0], unstack_state(results[1])) if return_state else results[0]


def srm_trace(
    current: Tensor,
    parameters: SRMParameters | None = None,
    state: SRMState | None = None,
    *,
    batch_first: bool = True,
) -> SRMTrace:
    """Runs SRM neurons and records what happens at each step, for plots and analysis; no gradient passes.

    Args:
        current: input current, [batch, time, ...], as in `srm_scan`.
        parameters: constants of the neurons; None stands for `SRMParameters()`.
        state: what the neurons begin with; None for 0.
        batch_first: False for [time, batch, ...].

    Returns:
        Spikes (those of `srm_scan`, bit for bit), membrane potential, its change per step, and the gradient trace.

    Raises:
        TypeError: as `srm_scan`.
        ValueError: as `srm_scan`.

    Example:
        >>> srm_trace(torch.tensor([[1.0, 1.0]])).membrane
        tensor([[0.3333, 0.8222]])
    """
    initial, constants, time_axis = check_scan(current, check_parameters(parameters), state, batch_first)
    current, constants = current.detach(), constants.detach()
    initial = None if initial is None else initial.detach()
    values = _trace(current, constants, initial, time_axis, requested_backend())
    spikes, membrane, gradient_trace = values
    before = membrane.masked_fill(spikes != 0, 0).movedim(time_axis, 0)
    first = torch.zeros_like(before[:1]) if initial is None else initial[:1]
    change = membrane - torch.cat((first, before))[:-1].movedim(0, time_axis)
    return SRMTrace(spikes, membrane, change, gradient_trace)


def check_gradient(gradient: Any, surrogate: Any) -> str:
    """Returns the rule that two options of `srm_scan` choose.

    Raises:
        ValueError: for another option.
    """
    check_option("gradient", gradient, get_args(Gradient))
    check_option("surrogate", surrogate, get_args(Surrogate))
    return surrogate if gradient == "surrogate" else gradient


def check_spike_dtype(spike_dtype: Any) -> torch.dtype | None:
    """Returns an option of `srm_scan`.

    Raises:
        ValueError: for another dtype, or anything but one.
    """
    allowed = torch.bfloat16, torch.float16, torch.uint8
    return None if spike_dtype is None else check_option("spike_dtype", spike_dtype, allowed)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward may follow; an exported program has none, and transforms hide what needs one."""
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    return transforms_active() or any(tensor is not None and tensor.requires_grad for tensor in tensors)


def check_scan(
    current: Tensor, parameters: SRMParameters, state: SRMState | None, batch_first: bool
) -> tuple[Tensor | None, Tensor, int]:
    """The initial state, the constants and the time axis, as the ops take them."""
    check_tensor("current", current, time_axes(batch_first, "..."))
    time_axis = 1 if batch_first else 0
    constants, initial = parameters.pack(current), stack_state(state, current)
    check_fits(current, constants, initial, time_axis, parameters)
    return initial, constants, time_axis


def check_fits(
    current: Tensor,
    constants: Tensor,
    initial: Tensor | None,
    time_axis: int,
    parameters: SRMParameters | None = None,
) -> None:
    """Checks that constants, packed from `parameters` if these are at hand, and state are those of a current's neurons.

    Raises:
        ValueError: if they are not.
    """
    channels = current.shape[2] if current.dim() > 2 else 1
    if constants.shape[1] not in (1, channels):
        name = "parameters"
        if parameters is not None:
            name = next(name for name in NAMES if getattr(parameters, name).numel() > 1)
        raise ValueError(
            f"{name} must hold one value or one for each of {channels} channels (axis 2 of current), "
            f"got {constants.shape[1]}"
        )
    check_shape(initial, current, time_axis)
