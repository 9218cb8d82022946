"""The event-driven rule written out as sums, on networks of matrices, with each of its published choices a switch.

It shares nothing with `srm_triton.ops.srm_scan` but the equations, so that each can be held against the other. A step
is 1/n of the unit of time in which constants and currents are given: τ becomes n·τ, an impulse W stays, a constant
current I gives I/n a step, the threshold stays. As a = 1 − 1/(n·τ), a^(n·t) goes to exp(−t/τ), and n·Δu to du/dt:
for n → ∞ this is the neuron of `srm_triton.audit.eventprop`.

    ε[k] = c·(a_m^k − a_s^k), c = τ_m/(τ_m − τ_s)        k steps from t to the next spike at or after it
    weight path[t] = w·ε[k + 1]        time path[t] = w·(ε[k + 1] − ε[k])
    w = (grad + x·weight path[t + 1])/Δu at a spike, x what a constant current gives in a step

is, with grad = −∂L/∂t of a loss of the times of spikes in steps, the derivative but for errors of the order of a step.
The published rule has v·a_g^(k+1) for the time path, v = grad/Δu_t, and w without the term of x: that a later spike,
and its reset, leaves less of the current to the next. Its other choices are those of `Rule`.

Impulses and currents belong to the start of a step, a spike to where the line from u[t − 1] to u[t] meets the
threshold. With `interpolated`, a layer receives a spike at a fraction f of its step as 1 − f in this step and f in the
next, and a spike resets what came before it in the step, and no more; then times move smoothly with weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from srm_triton.audit.eventprop import Neuron

NEURON = Neuron(tau_m=5.0, tau_s=3.0, threshold=1.0)
TAU_G = 2.5
SLOPE_LIMIT, TIME_SLOPE_LIMIT = 4.0, 123456789.0
RISE = 0.05
TIME_GRADIENT_SCALE = 0.85


@dataclass(frozen=True)
class Rule:
    """The published choices, each on or off; without any it is the derivative for n → ∞."""

    clamp: bool = False
    """1/Δu is at most 4."""
    damping: bool = False
    """The gradient to earlier spikes is taken times 0.85."""
    trace: bool = False
    """The time path follows the trace of τ_g in place of the derivative of ε."""
    sharing: bool = False
    """Pooling divides its gradient by its output."""
    by_inputs: bool = False
    """A convolution multiplies the gradient to its inputs by these."""
    would_be: bool = False
    """In the last layer, a silent neuron counts as firing at the last step at which Δu > 0.05."""
    fixed_resets: bool = False
    """A spike's gradient is that of its own time only, not that of the reset for the next."""


class Layer(NamedTuple):
    """Pooling, or the identity, and an affine map, as matrices."""

    matrix: Tensor
    """[samples, neurons, inputs]."""
    pool: Tensor
    """[inputs, neurons before]."""
    pooled: bool = False
    """Whether there is a pooling."""
    convolution: bool = False
    """Whether the map is a convolution."""


class Record(NamedTuple):
    """What a layer does, [samples, time, neurons]."""

    inputs: Tensor
    """Of the affine map, [samples, time, inputs]."""
    constant: Tensor
    """The constant current in a step, [samples, neurons]."""
    membrane: Tensor
    """u before the reset."""
    change: Tensor
    """Δu."""
    trace: Tensor
    """Δu_t."""
    spikes: Tensor
    """0 or 1."""
    fraction: Tensor
    """Of its step, where the spike is; elsewhere of no meaning."""


def simulate(
    layers: Sequence[Layer], impulses: Tensor, values: Tensor, refinement: int, *, interpolated: bool = False
) -> list[Record]:
    """Runs the neurons of every layer.

    Args:
        layers: of a feed-forward network.
        impulses: into the first, [samples, time, inputs].
        values: what its inputs give all the time, in a unit of time, [samples, inputs].
        refinement: n, steps in a unit of time.
        interpolated: whether spikes pass on where in their step they are.
    """
    records: list[Record] = []
    values = values / refinement
    for layer in layers:
        arrivals = impulses
        if records:
            arrivals, values = records[-1].spikes, values.new_zeros(1, layer.pool.shape[1])
            if interpolated:
                late = arrivals * records[-1].fraction
                arrivals = arrivals - late + F.pad(late, (0, 0, 1, -1))
        before = records[-1] if records and interpolated else None
        records.append(_neurons(layer, arrivals, values, refinement, interpolated, before))
    return records


def _neurons(
    layer: Layer, arrivals: Tensor, values: Tensor, refinement: int, interpolated: bool, before: Record | None
) -> Record:
    pulses, values = arrivals @ layer.pool.t(), values @ layer.pool.t()
    constant = torch.einsum("bi,bni->bn", values, layer.matrix)
    current = torch.einsum("bti,bni->tbn", pulses, layer.matrix) + constant
    membrane_decay, synapse_decay, gradient_decay = _decays(refinement)
    u, s, g = torch.zeros_like(current[:3])
    kept, rows, weights = torch.zeros_like(u), [], layer.matrix @ layer.pool
    for t, x in enumerate(current):
        previous = u
        s = s + x
        u = membrane_decay * u + s * (1 / (NEURON.tau_s * refinement))
        g = (g + x) * gradient_decay
        spike, change = u > NEURON.threshold, u - previous
        fraction = torch.where(spike, (NEURON.threshold - previous) / change, 0)
        rows.append((u, change, g, spike.to(u.dtype), fraction))
        if interpolated and spike.any():
            kept = (1 - fraction) * constant + _impulses_kept(weights, before, t, fraction)
        u, g = u.masked_fill(spike, 0), g.masked_fill(spike, 0)
        s = torch.where(spike, kept, s * synapse_decay)
    return Record(pulses + values[:, None], constant, *(torch.stack(row, 1) for row in zip(*rows, strict=True)))


def _impulses_kept(weights: Tensor, before: Record | None, t: int, fraction: Tensor) -> Tensor:
    """What a spike leaves of impulses of its step: those after it, less what those before it give to the next step."""
    if before is None:  # impulses into the first layer come when a step begins
        return torch.zeros_like(fraction)
    arrival = before.fraction[:, None, t]
    share = torch.where(arrival > fraction[:, :, None], 1 - arrival, -arrival) * before.spikes[:, None, t]
    return (weights * share).sum(2)


def _decays(refinement: int) -> list[float]:
    return [1 - 1 / (tau * refinement) for tau in (NEURON.tau_m, NEURON.tau_s, TAU_G)]


def gradients(
    layers: Sequence[Layer], records: Sequence[Record], grad: Tensor, refinement: int, rule: Rule
) -> list[Tensor]:
    """The gradient of every layer's matrix.

    Args:
        layers: as in `simulate`.
        records: what it returned, without interpolation.
        grad: of the last layer's spikes, [samples, time, neurons].
        refinement: as in `simulate`.
        rule: which choices to take.
    """
    results = []
    for number, (layer, record) in reversed(list(enumerate(zip(layers, records, strict=True)))):
        weight_path, time_path = _paths(record, grad, refinement, rule, number == len(layers) - 1)
        results.append(torch.einsum("btn,bti->bni", weight_path, record.inputs))
        grad = time_path @ layer.matrix * (TIME_GRADIENT_SCALE if rule.damping else 1.0)
        if rule.by_inputs and layer.convolution:
            grad = grad * record.inputs
        if rule.sharing and layer.pooled:
            grad = torch.where(record.inputs == 0, 0, grad / record.inputs)
        grad = grad @ layer.pool
    return results[::-1]


def _paths(record: Record, grad: Tensor, refinement: int, rule: Rule, last: bool) -> tuple[Tensor, Tensor]:
    membrane_decay, synapse_decay, gradient_decay = _decays(refinement)
    steps = torch.arange(grad.shape[1])[:, None]
    events = record.spikes != 0
    if rule.would_be and last:
        latest = torch.where(record.change > RISE / refinement, steps, -1).amax(1, keepdim=True)
        events = events | (steps == latest) & ~events.any(1, keepdim=True)
    none = len(steps)
    following = torch.where(events, steps, none).flip(1).cummin(1).values.flip(1)
    k = (following - steps).to(grad.dtype)

    def of_next(value: Tensor) -> Tensor:
        """At each step, the value at the next event; 0 where there is none."""
        return torch.where(following < none, value.gather(1, following.clamp(max=none - 1)), 0)

    def kernel(k: Tensor) -> Tensor:
        return NEURON.tau_m / (NEURON.tau_m - NEURON.tau_s) * (membrane_decay**k - synapse_decay**k)

    slope = 1 / record.change
    if rule.clamp:
        slope = slope.clamp(max=SLOPE_LIMIT * refinement)
    w = grad * slope
    if not rule.fixed_resets:
        for _ in range(int(events.sum(1).max()) if record.constant.any() else 0):  # the last spike is right first
            later = F.pad(of_next(w) * kernel(k + 1), (0, 0, -1, 1))
            w = (grad + record.constant[:, None] * later) * slope
    weight_path = of_next(w) * kernel(k + 1)
    if not rule.trace:
        return weight_path, of_next(w) * (kernel(k + 1) - kernel(k))
    v = grad * (1 / (record.trace + 0.0)).clamp(0, TIME_SLOPE_LIMIT * refinement)
    return weight_path, of_next(v) * gradient_decay ** (k + 1)
