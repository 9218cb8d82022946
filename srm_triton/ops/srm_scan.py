"""The spike response model (SRM) neuron over time, with its event-driven gradient.

Membrane, synaptic and gradient time constants τ_m ≠ τ_s, τ_g > 1 (in steps), threshold θ > 0; decays a = 1 − 1/τ;
c = τ_m / (τ_m − τ_s). From an input current x[t], all states starting at 0, for t = 0 … T−1:

    m ← (m + x)·a_m        s ← (s + x)·a_s        g ← (g + x)·a_g
    u  = c·(m − s)         spike[t] = u > θ
    Δu[t] = u − u_prev     Δu_t[t] = g
    at a spike: m = s = g = u_prev = 0, else u_prev = u

Backward, from `grad_spikes` = ∂L/∂(spike time). With k the number of steps from t to the next spike (0 at a spike):

    at a spike:   w = clamp(−1/Δu, −4, 0)·grad_spikes       v = clamp(−1/Δu_t, −κ, 0)·grad_spikes
    grad_weight_path[t] = w·c·(a_m^(k+1) − a_s^(k+1))       what the weights before the neuron receive
    grad_time_path[t]   = −v·a_g^(k+1)                      what earlier spike times receive

and both are 0 where no spike follows. This is a rule for spike times, not the derivative of a step function. Source:
Zhu et al., "Training Spiking Neural Networks with Event-driven Backpropagation", NeurIPS 2022, and "Exploring Loss
Functions for Time-based Training Strategy in Spiking Neural Networks", NeurIPS 2023.

The powers are carried, not tabulated: c·(a_m − a_s) = 1/τ_s, so the weight path starts from w/τ_s and goes on with
d ← a_m·d + p/τ_s, p ← a_s·p, which is exact where the difference of two powers would cancel.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.checks import check_tensor, time_axes
from srm_triton.kernels import SRM_SCAN_CHUNK
from srm_triton.parameters import SRMParameters, check_parameters

# Eager reference


class _Step(NamedTuple):
    spike: Tensor
    membrane: Tensor  # u
    membrane_change: Tensor  # Δu
    gradient_trace: Tensor  # Δu_t


def _steps(current: Tensor, parameters: SRMParameters, time_axis: int) -> Iterator[_Step]:
    membrane_decay, synapse_decay, gradient_decay = parameters.decays
    dtype = _accumulator(current)
    m = s = g = previous = torch.zeros_like(current.select(time_axis, 0), dtype=dtype)
    for x in current.unbind(time_axis):
        x = x.to(dtype)
        m = (m + x) * membrane_decay
        s = (s + x) * synapse_decay
        g = (g + x) * gradient_decay
        u = parameters.amplitude * (m - s)
        spike = u > parameters.threshold
        yield _Step(spike, u, u - previous, g)
        m, s, g, previous = (state.masked_fill(spike, 0) for state in (m, s, g, u))


def _reference_forward(
    current: Tensor,
    spikes: Tensor,
    membrane: Tensor | None,
    gradient_trace: Tensor | None,
    parameters: SRMParameters,
    time_axis: int,
) -> None:
    for t, step in enumerate(_steps(current, parameters, time_axis)):
        spikes.select(time_axis, t).copy_(step.spike)
        if membrane is not None and gradient_trace is not None:
            membrane.select(time_axis, t).copy_(step.membrane)
            gradient_trace.select(time_axis, t).copy_(step.gradient_trace)


def _reference_backward(
    grad_spikes: Tensor,
    current: Tensor,
    events: Tensor | None,
    grad_weight_path: Tensor | None,
    grad_time_path: Tensor | None,
    parameters: SRMParameters,
    time_axis: int,
) -> None:
    membrane_decay, synapse_decay, gradient_decay = parameters.decays
    steps = list(_steps(current, parameters, time_axis))
    weight_response = synapse_response = time_response = torch.zeros_like(steps[0].membrane)
    for t in reversed(range(len(steps))):
        event = steps[t].spike if events is None else events.select(time_axis, t) != 0
        grad = grad_spikes.select(time_axis, t).to(weight_response.dtype)
        w = (-1 / steps[t].membrane_change).clamp(-parameters.membrane_slope_limit, 0) * grad
        v = (-1 / steps[t].gradient_trace).clamp(-parameters.gradient_slope_limit, 0) * grad
        decayed = membrane_decay * weight_response + parameters.rise * synapse_response
        weight_response = torch.where(event, w * parameters.rise, decayed)
        synapse_response = synapse_decay * torch.where(event, w, synapse_response)
        time_response = gradient_decay * torch.where(event, -v, time_response)
        if grad_weight_path is not None:
            grad_weight_path.select(time_axis, t).copy_(weight_response)
        if grad_time_path is not None:
            grad_time_path.select(time_axis, t).copy_(time_response)


# Custom ops. A tensor without elements stands for one that was not asked for.


def _fill_forward(
    current: Tensor,
    spikes: Tensor,
    membrane: Tensor | None,
    gradient_trace: Tensor | None,
    states: Tensor | None,
    parameters: SRMParameters,
    time_axis: int,
    backend: str,
) -> None:
    if current.numel() == 0:
        return
    if resolve_backend(current.device, backend) == "triton":
        from srm_triton.kernels import srm_scan as kernel

        constants = (*parameters.decays, parameters.amplitude, parameters.threshold)
        kernel.forward(current, spikes, membrane, gradient_trace, states, time_axis, constants)
    else:
        _reference_forward(current, spikes, membrane, gradient_trace, parameters, time_axis)


@torch.library.custom_op("srm_triton::srm_scan", mutates_args=(), device_types=("cpu", "cuda"))
def _scan(
    current: Tensor, parameters: Sequence[float], time_axis: int, keep_states: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Spikes and, for the Triton backward, the state at the start of every chunk of time but the first."""
    spikes, states = _allocate_scan(current, parameters, time_axis, keep_states, backend)
    kept = states if states.numel() else None
    _fill_forward(current, spikes, None, None, kept, SRMParameters(*parameters), time_axis, backend)
    return spikes, states


@_scan.register_fake
def _allocate_scan(
    current: Tensor, parameters: Sequence[float], time_axis: int, keep_states: bool, backend: str
) -> tuple[Tensor, Tensor]:
    chunks = 1
    if keep_states and resolve_backend(current.device, backend) == "triton":
        chunks = max(1, -(-current.shape[time_axis] // SRM_SCAN_CHUNK))
    neurons = (*current.shape[:time_axis], *current.shape[time_axis + 1 :])
    return torch.empty_like(current), current.new_empty((chunks - 1, 3, *neurons), dtype=_accumulator(current))


@torch.library.custom_op("srm_triton::srm_trace", mutates_args=(), device_types=("cpu", "cuda"))
def _trace(current: Tensor, parameters: Sequence[float], time_axis: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, membrane potential and gradient trace."""
    spikes, membrane, gradient_trace = _allocate_trace(current, parameters, time_axis, backend)
    p = SRMParameters(*parameters)
    _fill_forward(current, spikes, membrane, gradient_trace, None, p, time_axis, backend)
    return spikes, membrane, gradient_trace


@_trace.register_fake
def _allocate_trace(
    current: Tensor, parameters: Sequence[float], time_axis: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _accumulator(current)
    spikes = torch.empty_like(current)
    return spikes, torch.empty_like(spikes, dtype=dtype), torch.empty_like(spikes, dtype=dtype)


@torch.library.custom_op("srm_triton::srm_scan_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _scan_backward(
    grad_spikes: Tensor,
    current: Tensor,
    states: Tensor,
    events: Tensor | None,
    parameters: Sequence[float],
    time_axis: int,
    weight_path: bool,
    time_path: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Both gradients; `events`, where given, say which steps count as spikes instead of the neuron's own."""
    outputs = _allocate_backward(
        grad_spikes, current, states, events, parameters, time_axis, weight_path, time_path, backend
    )
    grad_weight_path = outputs[0] if weight_path else None
    grad_time_path = outputs[1] if time_path else None
    p = SRMParameters(*parameters)
    if current.numel() == 0 or not (weight_path or time_path):
        return outputs
    if resolve_backend(current.device, backend) == "triton":
        from srm_triton.kernels import srm_scan as kernel

        kernel.backward(
            grad_spikes,
            current,
            states if states.numel() else None,
            events,
            grad_weight_path,
            grad_time_path,
            time_axis,
            (*p.decays, p.amplitude, p.threshold),
            (p.rise, 1 / p.membrane_slope_limit, 1 / p.gradient_slope_limit),
        )
    else:
        _reference_backward(grad_spikes, current, events, grad_weight_path, grad_time_path, p, time_axis)
    return outputs


@_scan_backward.register_fake
def _allocate_backward(
    grad_spikes: Tensor,
    current: Tensor,
    states: Tensor,
    events: Tensor | None,
    parameters: Sequence[float],
    time_axis: int,
    weight_path: bool,
    time_path: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    grad_weight_path = torch.empty_like(current) if weight_path else current.new_empty(0)
    grad_time_path = torch.empty_like(current) if time_path else current.new_empty(0)
    return grad_weight_path, grad_time_path


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    current, ctx.parameters, ctx.time_axis, _, ctx.backend = inputs
    ctx.save_for_backward(current, output[1])


def _differentiate(ctx: Any, grad_spikes: Tensor, grad_states: Tensor) -> tuple[Tensor | None, ...]:
    current, states = ctx.saved_tensors
    grad_weight_path, _ = _scan_backward(
        grad_spikes, current, states, None, ctx.parameters, ctx.time_axis, True, False, ctx.backend
    )
    return grad_weight_path, None, None, None, None


_scan.register_autograd(_differentiate, setup_context=_setup_context)


def _accumulator(current: Tensor) -> torch.dtype:
    return torch.float64 if current.dtype == torch.float64 else torch.float32


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


def srm_scan(current: Tensor, parameters: SRMParameters | None = None, *, batch_first: bool = True) -> Tensor:
    """Runs SRM neurons over time: input current in, spikes out.

    The gradient that reaches `current` is the weight path of the event-driven rule (see the module's equations): right
    for whatever computes the current from weights. A layer that also hands gradients to earlier spikes needs the time
    path too; `SRMLinear` and `SRMConv2d` join both.

    Args:
        current: input current, [batch, time, ...] with any feature shape, float64, float32, float16 or bfloat16, any
            strides. It is computed in float64 for float64, else in float32.
        parameters: constants of the neuron; None stands for `SRMParameters()`.
        batch_first: False for [time, batch, ...].

    Returns:
        Spikes, 0 or 1, in the shape and dtype of `current`. A current that is NaN or infinite silences its own neuron
        from that step on. Axes of length 0 give an empty result.

    Raises:
        TypeError: if `current` is not a floating-point tensor of a supported dtype.
        ValueError: if it has fewer than two axes or lies on an unsupported device.

    Example:
        >>> srm_scan(torch.tensor([[0.5, 1.5, 1.5, 1.5]]))
        tensor([[0., 0., 1., 0.]])
    """
    parameters, time_axis = _check(current, parameters, batch_first)
    keep_states = needs_gradient(current)
    return scan_forward(current, parameters, time_axis, keep_states)[0]


def srm_trace(current: Tensor, parameters: SRMParameters | None = None, *, batch_first: bool = True) -> SRMTrace:
    """Runs SRM neurons and records what happens at each step, for plots and analysis; no gradient passes.

    Args:
        current: input current, [batch, time, ...], as in `srm_scan`.
        parameters: constants of the neuron; None stands for `SRMParameters()`.
        batch_first: False for [time, batch, ...].

    Returns:
        Spikes (those of `srm_scan`, bit for bit), membrane potential, its change per step, and the gradient trace.

    Raises:
        TypeError: if `current` is not a floating-point tensor of a supported dtype.
        ValueError: if it has fewer than two axes or lies on an unsupported device.

    Example:
        >>> srm_trace(torch.tensor([[1.0, 1.0]])).membrane
        tensor([[0.3333, 0.8222]])
    """
    parameters, time_axis = _check(current, parameters, batch_first)
    values = _trace(current.detach(), parameters.to_list(), time_axis, requested_backend())
    spikes, membrane, gradient_trace = values
    before = membrane.masked_fill(spikes != 0, 0).movedim(time_axis, 0)[:-1]
    membrane_change = membrane.clone()
    membrane_change.movedim(time_axis, 0)[1:] -= before
    return SRMTrace(spikes, membrane, membrane_change, gradient_trace)


def scan_forward(
    current: Tensor, parameters: SRMParameters, time_axis: int, keep_states: bool
) -> tuple[Tensor, Tensor]:
    """Returns the spikes and the states that `scan_backward` takes; for layers with a backward of their own."""
    spikes, states = _scan(current, parameters.to_list(), time_axis, keep_states, requested_backend())
    return spikes, states


def scan_backward(
    grad_spikes: Tensor,
    current: Tensor,
    states: Tensor,
    events: Tensor | None,
    parameters: SRMParameters,
    time_axis: int,
    weight_path: bool,
    time_path: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Returns the weight path and the time path of the gradient; a path that is not asked for comes back empty."""
    grad_weight_path, grad_time_path = _scan_backward(
        grad_spikes, current, states, events, parameters.to_list(), time_axis, weight_path, time_path, backend
    )
    return grad_weight_path, grad_time_path


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether a backward may follow; an exported program has none."""
    return (
        torch.is_grad_enabled()
        and any(tensor.requires_grad for tensor in tensors)
        and not torch.compiler.is_exporting()
    )


def _check(current: Tensor, parameters: SRMParameters | None, batch_first: bool) -> tuple[SRMParameters, int]:
    check_tensor("current", current, time_axes(batch_first, "..."))
    return check_parameters(parameters), 1 if batch_first else 0
