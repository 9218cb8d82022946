"""Laws that hold bit for bit, whatever the input: on the eager reference, the C library and the interpreted kernels.

Examples are drawn anew where a law fails and the same in every other run.
"""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_srm_scan import BACKENDS, DTYPES
from torch import Tensor

from srm_triton import SRMParameters, use_backend
from srm_triton.ops.srm_scan import scan_backward, scan_forward

EXAMPLES = {
    "reference": 150,
    "native": 150,
    "triton": 25,
}  # of each law; a launch in the interpreter takes milliseconds
SPECIAL_VALUES = (0.0, -0.0, 1.0, 1e-30, 1e30, -1e30, float("inf"), float("-inf"), float("nan"))


class Case(NamedTuple):
    current: Tensor  # [batch, time, neurons]
    grad: Tensor
    label_steps: Tensor | None  # [batch, neurons]
    parameters: SRMParameters


@st.composite
def cases(draw: st.DrawFn, finite: bool = True) -> Case:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 20)))
    dtype = draw(st.sampled_from(DTYPES))
    tau_m, tau_s, tau_g = (draw(st.floats(1.125, 50, width=32)) for _ in range(3))
    if tau_m == tau_s:
        tau_s += 1
    parameters = SRMParameters(tau_m, tau_s, tau_g, draw(st.sampled_from((0.125, 0.7, 1.0, 3.0))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale, shift = draw(st.sampled_from((0.0, 0.3, 1.0, 30.0))), draw(st.sampled_from((-0.5, 0.0, 0.4, 2.0)))
    current = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift).to(dtype)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    label_steps = None
    if draw(st.booleans()):
        label_steps = torch.randint(-1, shape[1], shape[::2], dtype=torch.int32, generator=generator)
    if not finite:
        value = draw(st.sampled_from(SPECIAL_VALUES))
        current[tuple(draw(st.integers(0, size - 1)) for size in shape)] = value
    return Case(current, grad, label_steps, parameters)


def run(case: Case, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes and both gradients."""
    with use_backend(backend):
        spikes, states = scan_forward(case.current, case.parameters, 1, keep_states=True)
    paths = scan_backward(case.grad, case.current, states, case.label_steps, case.parameters, 1, True, True, backend)
    return spikes, *paths


def select(case: Case, samples: Tensor, steps: Tensor, neurons: Tensor) -> Case:
    label_steps = None if case.label_steps is None else case.label_steps[samples[:, 0], neurons]
    index = samples, steps, neurons
    return case._replace(current=case.current[index], grad=case.grad[index], label_steps=label_steps)


def same(results, expected) -> bool:
    return all(
        torch.equal(result.nan_to_num(7.0), other.nan_to_num(7.0)) and torch.equal(result.isnan(), other.isnan())
        for result, other in zip(results, expected, strict=True)
    )


def law(strategy):
    """Runs a test on every backend, with as many examples as its speed allows."""

    def decorate(test):
        @pytest.mark.parametrize("backend", BACKENDS)
        def on_backend(backend):
            health = [HealthCheck.too_slow, HealthCheck.data_too_large]
            checked = settings(
                max_examples=EXAMPLES[backend],
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=health,
            )(given(strategy, st.data())(lambda case, data: test(case, data, backend)))
            checked()

        on_backend.__name__ = test.__name__
        on_backend.__doc__ = test.__doc__
        return on_backend

    return decorate


@law(cases(finite=False))
def test_neurons_are_independent(case, data, backend):
    """Any order of samples and neurons, and any part of them, gives the same for each."""
    samples = data.draw(st.permutations(range(case.current.shape[0])))
    neurons = data.draw(st.permutations(range(case.current.shape[2])))
    samples, neurons = samples[: data.draw(st.integers(1, len(samples)))], neurons[: data.draw(st.integers(1, 20))]
    index = (torch.tensor(samples)[:, None, None], torch.arange(case.current.shape[1])[:, None], torch.tensor(neurons))
    assert same(run(select(case, *index), backend), [result[index] for result in run(case, backend)])


@law(cases(finite=False))
def test_memory_order_changes_nothing(case, data, backend):
    order = data.draw(st.permutations(range(3)))
    inverse = [order.index(axis) for axis in range(3)]
    current, grad = (tensor.permute(order).contiguous().permute(inverse) for tensor in (case.current, case.grad))
    label_steps = case.label_steps
    if label_steps is not None and data.draw(st.booleans()):
        label_steps = label_steps.mT.contiguous().mT
    assert same(run(case._replace(current=current, grad=grad, label_steps=label_steps), backend), run(case, backend))


@law(cases())
def test_units_are_free(case, data, backend):
    """Spikes depend on the current in units of the threshold."""
    factor = 2.0 ** data.draw(st.integers(-6, 6))
    dtype = torch.promote_types(case.current.dtype, torch.float32)  # halves lose bits where they are small
    current = case.current.to(dtype)
    scaled = replace(case.parameters, threshold=case.parameters.threshold * factor)
    for other, parameters in ((current, case.parameters), (current * factor, scaled)):
        with use_backend(backend):
            spikes = scan_forward(other, parameters, 1, keep_states=False)[0]
        if other is current:
            expected = spikes
    assert torch.equal(spikes, expected)


@law(cases(finite=False))
def test_the_future_changes_no_spike(case, data, backend):
    now = data.draw(st.integers(0, case.current.shape[1] - 1))
    other = case.current.clone()
    other[:, now:] = data.draw(st.sampled_from((0.0, 5.0, float("nan"))))
    spikes, *_ = run(case, backend)
    assert torch.equal(run(case._replace(current=other), backend)[0][:, :now], spikes[:, :now])


@law(cases())
def test_gradients_come_from_the_next_spike_only(case, data, backend):
    """What earlier gradients of spikes are, and what lies behind a spike, changes nothing."""
    now = data.draw(st.integers(0, case.current.shape[1] - 1))
    spikes, *paths = run(case, backend)
    with_event = spikes[:, now] != 0
    if case.label_steps is not None:
        with_event |= case.label_steps == now
    other = case.grad.clone()
    other[:, :now] = data.draw(st.sampled_from((0.0, 1.0, float("nan"))))
    later = run(case._replace(grad=other), backend)[1:]
    assert same([path[:, now:] for path in later], [path[:, now:] for path in paths])
    other = case.grad.clone()
    other[:, now + 1 :] = 0
    earlier = run(case._replace(grad=other), backend)[1:]
    for path, expected in zip(earlier, paths, strict=True):
        before = path[:, : now + 1].movedim(1, 2)[with_event]
        assert torch.equal(before, expected[:, : now + 1].movedim(1, 2)[with_event])


@law(cases())
def test_the_backward_is_linear(case, data, backend):
    dtype = torch.promote_types(case.current.dtype, torch.float32)
    case = case._replace(current=case.current.to(dtype), grad=case.grad.to(dtype))
    factor = data.draw(st.sampled_from((-1.0, 1.0))) * 2.0 ** data.draw(st.integers(-8, 8))
    _, *paths = run(case, backend)
    _, *scaled = run(case._replace(grad=case.grad * factor), backend)
    assert all(torch.equal(result, path * factor) for result, path in zip(scaled, paths, strict=True))
