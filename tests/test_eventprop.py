"""Exact spike times and their gradients, against sums of kernels, numerical integration and finite differences."""

import itertools
import math

import pytest
import torch

from srm_triton.audit.eventprop import Neuron, Spike, gradients, simulate
from srm_triton.audit.gradients import exact_differences, exact_gradients
from srm_triton.audit.networks import NETWORKS, draw

NEURON = Neuron(5.0, 3.0, 1.0)


def kernel(time: float) -> float:
    return 2.5 * (math.exp(-time / 5) - math.exp(-time / 3)) if time > 0 else 0.0


def test_spikes_are_where_sums_of_kernels_meet_the_threshold():
    """Scanned in small steps, then halved, with what the last spike erased left out."""
    weights, arrivals = [2.4, -0.4, 1.7, 3.9], [0.0, 0.5, 1.0, 4.5, 5.0, 7.25, 8.0, 8.5, 9.0]
    inputs = [Spike(time, k % 4) for k, time in enumerate(arrivals)]
    spikes = simulate([[weights]], inputs, [0.0] * 4, NEURON, 20.0)[1]
    expected, reset = [], -1.0

    def u(time: float) -> float:
        return sum(weights[spike.source] * kernel(time - spike.time) for spike in inputs if spike.time > reset)

    grid = [step / 500 for step in range(10_001)]
    for low, high in itertools.pairwise(grid):
        if u(low) < 1 <= u(high):
            for _ in range(60):
                low, high = (low, (low + high) / 2) if u((low + high) / 2) >= 1 else ((low + high) / 2, high)
            expected.append(high)
            slope = (u(high) - u(high - 1e-7)) / 1e-7
            assert spikes[len(expected) - 1].slope == pytest.approx(slope, rel=1e-5)
            reset = high
    assert len(expected) == 3
    assert [spike.time for spike in spikes] == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("neuron", [NEURON, Neuron(3.0, 5.0, 0.8), Neuron(40.0, 0.5, 1.0)])
def test_spikes_are_those_of_numerical_integration(neuron):
    """Runge-Kutta of the two equations, with a constant current and impulses of both signs."""
    inputs, weights, current = [Spike(1.0, 0), Spike(2.0, 1), Spike(6.0, 0)], [1.5, -2.0], 0.7
    spikes = simulate([[[*weights, current]]], inputs, [0.0, 0.0, 1.0], neuron, 12.0)[1]
    step, u, s, expected = 1 / 1024, 0.0, 0.0, []

    def rate(u: float, s: float) -> tuple[float, float]:
        return -u / neuron.tau_m + s / neuron.tau_s, -s / neuron.tau_s + current

    for number in range(12 * 1024):
        s += sum(weights[spike.source] for spike in inputs if spike.time == number * step)
        a = rate(u, s)
        b = rate(u + step / 2 * a[0], s + step / 2 * a[1])
        c = rate(u + step / 2 * b[0], s + step / 2 * b[1])
        d = rate(u + step * c[0], s + step * c[1])
        before = u
        u, s = (x + step / 6 * (p + 2 * q + 2 * r + t) for x, p, q, r, t in zip((u, s), a, b, c, d, strict=True))
        if u >= neuron.threshold:
            fraction = (neuron.threshold - before) / (u - before)
            expected.append((number + fraction) * step)
            u, s = 0.0, current * (1 - fraction) * step
    assert len(expected) >= 2
    assert [spike.time for spike in spikes] == pytest.approx(expected, abs=3e-6)  # of linear interpolation


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_gradients_are_finite_differences_of_exact_spike_times(network):
    compare_with_differences(draw(network, [1])[0])


def test_gradients_are_finite_differences_with_impulses_and_currents_together():
    (case,) = draw(NETWORKS[1], [1])
    compare_with_differences(case._replace(values=torch.linspace(0.01, 0.06, 6, dtype=torch.float64)))


def compare_with_differences(case):
    for number, gradient in enumerate(exact_gradients(case)):
        assert gradient.any()
        torch.testing.assert_close(exact_differences(case, number), gradient, rtol=0, atol=2e-9 * gradient.abs().max())


def test_a_spike_erases_what_came_before():
    """The time of a second spike depends on the inputs after the first alone; with a current, on the first too."""
    inputs, matrix = [Spike(0.0, 0), Spike(4.0, 1)], [[3.0, 3.0]]
    layers = simulate([matrix], inputs, [0.0, 0.0], NEURON, 10.0)
    assert len(layers[1]) == 2
    assert layers[1][1].time - 4 == pytest.approx(layers[1][0].time, abs=1e-14)
    [[of_second]] = gradients([matrix], layers, [0.0, 0.0], [0.0, 1.0], NEURON, 10.0)
    [[of_first]] = gradients([matrix], layers, [0.0, 0.0], [1.0, 0.0], NEURON, 10.0)
    assert of_second[0] == 0 and of_first[1] == 0 and of_second[1] == pytest.approx(of_first[0], rel=1e-13)
    values, current = [1.0], [[0.5]]
    layers = simulate([current], [], values, NEURON, 20.0)
    times = [spike.time for spike in layers[1]]
    assert times == pytest.approx([times[0] * k for k in range(1, len(times) + 1)], abs=1e-12) and len(times) > 2
    slopes = [
        gradients([current], layers, values, [float(k == number) for k in range(len(times))], NEURON, 20.0)[0][0][0]
        for number in range(len(times))
    ]
    assert slopes == pytest.approx([slopes[0] * k for k in range(1, len(times) + 1)], rel=1e-11)


def test_a_neuron_without_a_spike_has_no_gradient():
    layers = simulate([[[0.5]], [[2.0]]], [Spike(0.0, 0)], [0.0], NEURON, 10.0)
    assert layers[1:] == [[], []]
    assert gradients([[[0.5]], [[2.0]]], layers, [0.0], [], NEURON, 10.0) == [[[0.0]], [[0.0]]]


@pytest.mark.parametrize(
    ("neuron", "duration", "message"),
    [
        (Neuron(5.0, 5.0, 1.0), 1.0, "tau_m and tau_s must differ, got 5.0 for both"),
        (Neuron(5.0, 3.0, 0.0), 1.0, "threshold must be finite and > 0, got 0.0"),
        (Neuron(math.inf, 3.0, 1.0), 1.0, "tau_m must be finite and > 0, got inf"),
        (NEURON, -1.0, "duration must be finite and > 0, got -1.0"),
    ],
)
def test_constants_out_of_range(neuron, duration, message):
    with pytest.raises(ValueError, match=message):
        simulate([[[1.0]]], [], [0.0], neuron, duration)
