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

and both are 0 where no spike follows; a label spike (see `spiking_affine`) counts as one, but resets nothing. This is a
rule for spike times, not the derivative of a step function. Source: Zhu et al., "Training Spiking Neural Networks with
Event-driven Backpropagation", NeurIPS 2022, and "Exploring Loss Functions for Time-based Training Strategy in Spiking
Neural Networks", NeurIPS 2023.

The powers are carried, not tabulated: c·(a_m − a_s) = 1/τ_s, so the weight path starts from w/τ_s and goes on with
d ← a_m·d + p/τ_s, p ← a_s·p, which is exact where the difference of two powers would cancel.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.checks import check_tensor, time_axes
from srm_triton.functions import Function, Gradients, keep_results, once_differentiable
from srm_triton.kernels import SRM_SCAN_CHUNK, native
from srm_triton.kernels.layout import accumulator_dtype
from srm_triton.parameters import SRMParameters, check_parameters
from srm_triton.tuning_cache import find_configuration

# Eager reference. It works in place and selects by bits: in ATen, torch.where and masked_fill take ten times as long.


class _Step(NamedTuple):
    """What happens at a step; overwritten by the next one."""

    spike: Tensor
    membrane: Tensor  # u
    previous: Tensor  # u_prev
    gradient_trace: Tensor  # Δu_t


def _steps(current: Tensor, parameters: SRMParameters, time_axis: int) -> Iterator[_Step]:
    membrane_decay, synapse_decay, gradient_decay = parameters.decays
    m, s, g, u, previous, spike = _zeros_of_a_step(6, current, time_axis)
    for x in current.unbind(time_axis):
        x = x.to(m.dtype)
        m.add_(x).mul_(membrane_decay)
        s.add_(x).mul_(synapse_decay)
        g.add_(x).mul_(gradient_decay)
        torch.sub(m, s, out=u).mul_(parameters.amplitude)
        torch.gt(u, parameters.threshold, out=spike)
        yield _Step(spike, u, previous, g)
        no_spike = _bits_where_zero(spike)
        for state in (m, s, g, u):
            _keep(state, no_spike)
        previous, u = u, previous


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
    label_steps: Tensor | None,
    grad_weight_path: Tensor | None,
    grad_time_path: Tensor | None,
    parameters: SRMParameters,
    time_axis: int,
) -> None:
    membrane_decay, synapse_decay, gradient_decay = parameters.decays
    paths = (grad_weight_path, grad_time_path)
    dtype = accumulator_dtype(current.dtype)
    # The slopes wait in the memory of the results, where that has their type.
    results = [torch.empty_like(current, dtype=dtype) if path is None else path.to(dtype) for path in paths]
    weight_results, time_results = (result.unbind(time_axis) for result in results)

    no_events = []
    for t, step in enumerate(_steps(current, parameters, time_axis)):
        event = step.spike if label_steps is None else step.spike.maximum(label_steps == t)
        no_events.append(_bits_where_zero(event))
        slope = torch.sub(step.membrane, step.previous, out=weight_results[t]).reciprocal_()
        slope.neg_().clamp_(-parameters.membrane_slope_limit, 0)
        slope = torch.reciprocal(step.gradient_trace, out=time_results[t])
        slope.neg_().clamp_(-parameters.gradient_slope_limit, 0)

    weight_response, synapse_response, time_response = _zeros_of_a_step(3, current, time_axis)
    for t in reversed(range(len(no_events))):
        grad = grad_spikes.select(time_axis, t).to(dtype)
        w = _keep(weight_results[t].mul_(grad), ~no_events[t])
        v = _keep(time_results[t].mul_(grad), ~no_events[t])
        weight_response.mul_(membrane_decay).add_(synapse_response * parameters.rise)
        _keep(weight_response, no_events[t]).add_(w * parameters.rise)
        _keep(synapse_response, no_events[t]).add_(w).mul_(synapse_decay)
        _keep(time_response, no_events[t]).sub_(v).mul_(gradient_decay)
        weight_results[t].copy_(weight_response)
        time_results[t].copy_(time_response)
    for path, result in zip(paths, results, strict=True):
        if path is not None and path is not result:
            path.copy_(result)


def _zeros_of_a_step(number: int, current: Tensor, time_axis: int) -> list[Tensor]:
    like = current.select(time_axis, 0)
    return [torch.zeros_like(like, dtype=accumulator_dtype(current.dtype)) for _ in range(number)]


def _bits_where_zero(mask: Tensor) -> Tensor:
    """Integers as wide as the floats of `mask`: every bit set where it is 0, none where it is 1."""
    return mask.to(torch.int64 if mask.dtype == torch.float64 else torch.int32).sub_(1)


def _keep(values: Tensor, bits: Tensor) -> Tensor:
    """Sets values to 0, NaN too, where no bit is set; in place."""
    values.view(bits.dtype).bitwise_and_(bits)
    return values


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
    constants = (*parameters.decays, parameters.amplitude, parameters.threshold)
    chosen = resolve_backend(current.device, backend, has_native=True)
    if chosen == "triton":
        from srm_triton.kernels import srm_scan as kernel

        tuned = find_configuration("srm_scan_forward", current, time_axis)
        kernel.forward(current, spikes, membrane, gradient_trace, states, time_axis, constants, tuned)
    elif chosen == "native":
        native.scan_forward(current, spikes, membrane, gradient_trace, time_axis, constants)
    else:
        _reference_forward(current, spikes, membrane, gradient_trace, parameters, time_axis)


@torch.library.custom_op("srm_triton::srm_scan", mutates_args=(), device_types=("cpu", "cuda"))
def _scan(
    current: Tensor, parameters: Sequence[float], time_axis: int, keep_states: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Spikes and, for the Triton backward, the state at the start of every chunk of time but the first."""
    spikes, states = _allocate_scan(current, parameters, time_axis, keep_states, backend)
    kept = states if states.numel() else None
    _fill_forward(current, spikes, None, None, kept, SRMParameters.from_list(parameters), time_axis, backend)
    return spikes, states


@_scan.register_fake
def _allocate_scan(
    current: Tensor, parameters: Sequence[float], time_axis: int, keep_states: bool, backend: str
) -> tuple[Tensor, Tensor]:
    chunks = 1
    if keep_states and resolve_backend(current.device, backend) == "triton":
        chunks = max(1, -(-current.shape[time_axis] // SRM_SCAN_CHUNK))
    neurons = (*current.shape[:time_axis], *current.shape[time_axis + 1 :])
    states = current.new_empty((chunks - 1, 3, *neurons), dtype=accumulator_dtype(current.dtype))
    return torch.empty_like(current), states


@torch.library.custom_op("srm_triton::srm_trace", mutates_args=(), device_types=("cpu", "cuda"))
def _trace(current: Tensor, parameters: Sequence[float], time_axis: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, membrane potential and gradient trace."""
    spikes, membrane, gradient_trace = _allocate_trace(current, parameters, time_axis, backend)
    p = SRMParameters.from_list(parameters)
    _fill_forward(current, spikes, membrane, gradient_trace, None, p, time_axis, backend)
    return spikes, membrane, gradient_trace


@_trace.register_fake
def _allocate_trace(
    current: Tensor, parameters: Sequence[float], time_axis: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulator_dtype(current.dtype)
    spikes = torch.empty_like(current)
    return spikes, torch.empty_like(spikes, dtype=dtype), torch.empty_like(spikes, dtype=dtype)


@torch.library.custom_op("srm_triton::srm_scan_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _scan_backward(
    grad_spikes: Tensor,
    current: Tensor,
    states: Tensor,
    label_steps: Tensor | None,
    parameters: Sequence[float],
    time_axis: int,
    weight_path: bool,
    time_path: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Both gradients; `label_steps`, int32 [*neurons], say where a neuron counts as firing besides (−1: nowhere)."""
    outputs = _allocate_backward(
        grad_spikes, current, states, label_steps, parameters, time_axis, weight_path, time_path, backend
    )
    grad_weight_path = outputs[0] if weight_path else None
    grad_time_path = outputs[1] if time_path else None
    if current.numel() == 0 or not (weight_path or time_path):
        return outputs
    p = SRMParameters.from_list(parameters)
    paths = (grad_weight_path, grad_time_path)
    constants = (*p.decays, p.amplitude, p.threshold)
    gradient_constants = (p.rise, p.membrane_slope_limit, p.gradient_slope_limit)
    chosen = resolve_backend(current.device, backend, has_native=True)
    if chosen == "triton":
        from srm_triton.kernels import srm_scan as kernel

        kept = states if states.numel() else None
        tuned = find_configuration("srm_scan_backward", current, time_axis)
        kernel.backward(
            grad_spikes, current, kept, label_steps, *paths, time_axis, constants, gradient_constants, tuned
        )
    elif chosen == "native":
        native.scan_backward(grad_spikes, current, label_steps, *paths, time_axis, constants, gradient_constants)
    else:
        _reference_backward(grad_spikes, current, label_steps, *paths, p, time_axis)
    return outputs


@_scan_backward.register_fake
def _allocate_backward(
    grad_spikes: Tensor,
    current: Tensor,
    states: Tensor,
    label_steps: Tensor | None,
    parameters: Sequence[float],
    time_axis: int,
    weight_path: bool,
    time_path: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    grad_weight_path = torch.empty_like(current) if weight_path else current.new_empty(0)
    grad_time_path = torch.empty_like(current) if time_path else current.new_empty(0)
    return grad_weight_path, grad_time_path


def _map(op: Any) -> None:
    """Teaches an op to run under `torch.vmap`: a mapped axis is one more axis of neurons, the last."""

    def mapped(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], Any]:
        def put_last(argument: Any, dim: int | None) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            if dim is None:
                return argument.unsqueeze(-1).expand(*argument.shape, info.batch_size)
            return argument.movedim(dim, -1)

        results = op(*map(put_last, arguments, in_dims))
        # one that was not asked for has a single axis, of length 0
        return results, tuple(result.dim() - 1 if result.dim() > 1 else None for result in results)

    op.register_vmap(mapped)


_map(_scan)
_map(_trace)
_map(_scan_backward)


class _Scan(Function):
    @staticmethod
    def forward(
        current: Tensor, parameters: SRMParameters, time_axis: int, keep_states: bool, backend: str
    ) -> tuple[Tensor, Tensor]:
        return _scan(current, parameters.to_list(), time_axis, keep_states, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        current, *constants, _, backend = inputs
        ctx.constants = *constants, True, False, backend
        keep_results(ctx, output)
        ctx.save_for_backward(current, output[1])

    @staticmethod
    @once_differentiable("srm_scan")
    def backward(ctx: Any, saved: tuple[Tensor, Tensor], grad_spikes: Tensor, _: Tensor) -> Gradients:
        return scan_backward(grad_spikes, *saved, None, *ctx.constants)[0], None, None, None, None


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
    spikes: Tensor = _Scan.apply(current, parameters, time_axis, keep_states, requested_backend())[0]
    return spikes


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
    label_steps: Tensor | None,
    parameters: SRMParameters,
    time_axis: int,
    weight_path: bool,
    time_path: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Returns the weight path and the time path of the gradient; a path that is not asked for comes back empty."""
    grad_weight_path, grad_time_path = _scan_backward(
        grad_spikes, current, states, label_steps, parameters.to_list(), time_axis, weight_path, time_path, backend
    )
    return grad_weight_path, grad_time_path


def resolve_parameters(parameters: SRMParameters | None) -> SRMParameters:
    """Returns the constants, the default ones for None, for use in an autograd function."""
    parameters = check_parameters(parameters)
    if torch.compiler.is_compiling():
        parameters.to_list()  # with dynamic=True, floats read first in one such function are lost to the next
    return parameters


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether a backward may follow; an exported program has none, and transforms hide what needs one."""
    return (
        torch.is_grad_enabled()
        and (any(tensor.requires_grad for tensor in tensors) or torch._C._are_functorch_transforms_active())
        and not torch.compiler.is_exporting()
    )


def _check(current: Tensor, parameters: SRMParameters | None, batch_first: bool) -> tuple[SRMParameters, int]:
    check_tensor("current", current, time_axes(batch_first, "..."))
    return resolve_parameters(parameters), 1 if batch_first else 0
