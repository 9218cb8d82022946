"""EventProp: exact gradients of spike times in continuous time, by adjoint equations that jump at spikes.

The neuron that `srm_triton.ops.srm_scan` comes to as its time step shrinks, with a constant current I and impulses W_j
at the times t_j, the spikes of the neurons before it:

    du/dt = −u/τ_m + s/τ_s        ds/dt = −s/τ_s + I + Σ W_j·δ(t − t_j)        u = θ: a spike, and u = s = 0

Between events both have closed forms, so a spike's time is the root of one function of time. For a loss of the spike
times, λ runs from 0 at the end back in time:

    dλ_u/dt = λ_u/τ_m        dλ_s/dt = (λ_s − λ_u)/τ_s
    at an own spike t_k:     λ_u ← −(∂L/∂t_k − I·λ_s)/(du/dt)        λ_s ← 0
    at an impulse t_j:       ∂L/∂W_j = λ_s        ∂L/∂t_j = (λ_s − λ_u)·W_j/τ_s
    ∂L/∂I = ∫ λ_s dt

The term I·λ_s is that of the reset: a later spike leaves less of the current to the next. Source: Wunderlich and Pehle,
"Event-based backpropagation can compute exact gradients for spiking neural networks", Scientific Reports 2021; there a
spike resets u alone, here, as in this package, s too. In plain Python floats: a reference for small networks.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from srm_triton.checks import check_number

Matrix = Sequence[Sequence[float]]
"""Weights, [neurons, neurons before]."""


class Neuron(NamedTuple):
    """Constants of the neurons, in any unit of time."""

    tau_m: float
    """Membrane time constant."""
    tau_s: float
    """Synaptic time constant, not that of the membrane."""
    threshold: float
    """Potential at which a spike is fired."""


class Spike(NamedTuple):
    """A spike of a layer, or an input."""

    time: float
    """When."""
    source: int
    """Whose, of the neurons of its layer."""
    slope: float = math.nan
    """du/dt just before; NaN for an input."""


class _Decay(NamedTuple):
    """What becomes of (u, s), or of λ, in a while."""

    membrane: float  # exp(−t/τ_m)
    synapse: float  # exp(−t/τ_s)
    kernel: float  # of an impulse on u

    @classmethod
    def over(cls, time: float, neuron: Neuron) -> "_Decay":
        membrane, synapse = math.exp(-time / neuron.tau_m), math.exp(-time / neuron.tau_s)
        return cls(membrane, synapse, neuron.tau_m / (neuron.tau_m - neuron.tau_s) * (membrane - synapse))


class _Path:
    """The way of u and s from a state, under a constant current."""

    def __init__(self, u: float, s: float, current: float, neuron: Neuron) -> None:
        self.neuron, self.current = neuron, current
        self.rest = current * neuron.tau_m, current * neuron.tau_s  # what u and s go to
        self.u, self.s = u - self.rest[0], s - self.rest[1]

    def after(self, time: float) -> tuple[float, float]:
        """The state."""
        decay = _Decay.over(time, self.neuron)
        u = self.rest[0] + decay.membrane * self.u + decay.kernel * self.s
        return u, self.rest[1] + decay.synapse * self.s

    def turn(self) -> float:
        """The only time at which du/dt may be 0; not positive or NaN if there is none."""
        tau_m, tau_s, _ = self.neuron
        synaptic = tau_m / (tau_m - tau_s) * self.s
        membrane = self.u + synaptic
        ratio = synaptic * tau_m / (membrane * tau_s) if membrane else 0.0
        return math.log(ratio) / (1 / tau_s - 1 / tau_m) if ratio > 0 else math.nan

    def crossing(self, length: float) -> float | None:
        """The first time in (0, length] at which u comes to the threshold, from below."""
        threshold, turn = self.neuron.threshold, self.turn()
        before = 0.0
        for end in (turn, length) if 0 < turn < length else (length,):
            if self.after(end)[0] >= threshold:
                return self._bisect(before, end)
            before = end
        return None

    def _bisect(self, below: float, above: float) -> float:
        while below < (middle := (below + above) / 2) < above:  # to the last bit
            if self.after(middle)[0] < self.neuron.threshold:
                below = middle
            else:
                above = middle
        return above


def simulate(
    matrices: Sequence[Matrix], inputs: Sequence[Spike], values: Sequence[float], neuron: Neuron, duration: float
) -> list[list[Spike]]:
    """The spikes of every layer of a feed-forward network.

    Args:
        matrices: of each layer, its weights to the inputs or the layer before.
        inputs: impulses into the first layer.
        values: of each input, what it gives all the time, beside its impulses.
        neuron: constants of all neurons.
        duration: when the simulation ends.

    Returns:
        The inputs, and the spikes of each layer, in the order of time.

    Raises:
        ValueError: for constants out of range, or equal time constants.

    Example:
        >>> inputs, spikes = simulate([[[3.0]]], [Spike(1.0, 0)], [0.0], Neuron(5.0, 3.0, 1.0), 10.0)
        >>> round(spikes[0].time, 6)
        2.482441
    """
    neuron = Neuron(*(check_number(name, value, 0, above=True) for name, value in neuron._asdict().items()))
    duration = check_number("duration", duration, 0, above=True)
    if neuron.tau_m == neuron.tau_s:
        raise ValueError(f"tau_m and tau_s must differ, got {neuron.tau_m} for both")
    layers = [sorted(inputs)]
    for number, matrix in enumerate(matrices):
        currents = _currents(matrix, values) if number == 0 else [0.0] * len(matrix)
        spikes = [
            Spike(time, index, slope)
            for index, (row, current) in enumerate(zip(matrix, currents, strict=True))
            for time, slope in _fire(row, layers[-1], current, neuron, duration)
        ]
        layers.append(sorted(spikes))
    return layers


def _currents(matrix: Matrix, values: Sequence[float]) -> list[float]:
    return [sum(weight * value for weight, value in zip(row, values, strict=True)) for row in matrix]


def _fire(
    row: Sequence[float], inputs: Sequence[Spike], current: float, neuron: Neuron, duration: float
) -> Iterator[tuple[float, float]]:
    """The times of a neuron's spikes, and du/dt before them."""
    now, u, s = 0.0, 0.0, 0.0
    for time, weight in [*((spike.time, row[spike.source]) for spike in inputs), (duration, 0.0)]:
        while (wait := (path := _Path(u, s, current, neuron)).crossing(time - now)) is not None:
            u, s = path.after(wait)
            now += wait
            yield now, s / neuron.tau_s - u / neuron.tau_m
            u = s = 0.0
        u, s = path.after(time - now)
        now, s = time, s + weight


def gradients(
    matrices: Sequence[Matrix],
    layers: Sequence[Sequence[Spike]],
    values: Sequence[float],
    time_gradients: Sequence[float],
    neuron: Neuron,
    duration: float,
) -> list[list[list[float]]]:
    """The gradient of a loss of the last layer's spike times with respect to every weight.

    Args:
        matrices: as in `simulate`, as are the three others that it takes too.
        layers: what it returned.
        values: see `matrices`.
        time_gradients: ∂L/∂t of each spike of the last layer.
        neuron: see `matrices`.
        duration: see `matrices`.

    Returns:
        For each layer what its matrix is like.

    Example:
        A later spike is what a smaller weight makes:

        >>> neuron = Neuron(5.0, 3.0, 1.0)
        >>> layers = simulate([[[3.0]]], [Spike(1.0, 0)], [0.0], neuron, 10.0)
        >>> round(gradients([[[3.0]]], layers, [0.0], [1.0], neuron, 10.0)[0][0][0], 6)
        -0.812828
    """
    results = []
    for number, matrix in reversed(list(enumerate(matrices))):
        given = values if number == 0 else [0.0] * len(matrix[0])
        inputs, own = layers[number], list(zip(layers[number + 1], time_gradients, strict=True))
        total = [[0.0] * len(row) for row in matrix]
        earlier = [0.0] * len(inputs)
        for index, (row, current) in enumerate(zip(matrix, _currents(matrix, given), strict=True)):
            spikes = [pair for pair in own if pair[0].source == index]
            integral = _adjoint(row, inputs, spikes, current, neuron, duration, total[index], earlier)
            total[index] = [sum_ + value * integral for sum_, value in zip(total[index], given, strict=True)]
        results.append(total)
        time_gradients = earlier
    return results[::-1]


def _adjoint(
    row: Sequence[float],
    inputs: Sequence[Spike],
    spikes: Sequence[tuple[Spike, float]],
    current: float,
    neuron: Neuron,
    duration: float,
    grad_row: list[float],
    grad_times: list[float],
) -> float:
    """Adds a neuron's gradients to those of its weights and of the times of its inputs; returns ∂L/∂I."""
    tau_m, tau_s, _ = neuron
    now, integral, lambda_u, lambda_s = duration, 0.0, 0.0, 0.0
    events = [(spike.time, None, -1, spike.slope, gradient) for spike, gradient in spikes]
    arrivals = [(spike.time, spike.source, position, 0.0, 0.0) for position, spike in enumerate(inputs)]
    for time, source, position, slope, gradient in sorted(
        [*events, *arrivals, (0.0, None, -2, 0.0, 0.0)], reverse=True, key=lambda e: e[0]
    ):
        decay = _Decay.over(now - time, neuron)
        integral += lambda_s * tau_s * (1 - decay.synapse)
        integral += lambda_u * tau_m / (tau_m - tau_s) * (tau_m * (1 - decay.membrane) - tau_s * (1 - decay.synapse))
        lambda_u, lambda_s = decay.membrane * lambda_u, decay.synapse * lambda_s + decay.kernel * lambda_u
        now = time
        if source is not None:
            grad_row[source] += lambda_s
            grad_times[position] += (lambda_s - lambda_u) * row[source] / tau_s
        elif slope:
            lambda_u, lambda_s = -(gradient - current * lambda_s) / slope, 0.0
    return integral
