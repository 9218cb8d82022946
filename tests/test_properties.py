"""Laws that hold bit for bit, whatever the input: on the eager reference, the C library and the interpreted kernels.

Examples are drawn anew where a law fails and with `--thorough`, and the same in every other run.
"""

from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_srm_scan import BACKENDS, DTYPES
from torch import Tensor

from srm_triton import SRMParameters, srm_scan, use_backend
from srm_triton.ops.srm_scan import scan

EXAMPLES = {"reference": 150, "native": 150, "triton": 3}  # of each law; an interpreted launch takes milliseconds
SPECIAL_VALUES = (0.0, -0.0, 1.0, 1e-30, 1e30, -1e30, float("inf"), float("-inf"), float("nan"))


class Case(NamedTuple):
    current: Tensor  # [batch, time, neurons]
    grad: Tensor
    parameters: SRMParameters
    rule: str
    output: bool


@st.composite
def cases(draw: st.DrawFn, finite: bool = True) -> Case:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 20)))
    dtype = draw(st.sampled_from(DTYPES))
    tau_m, tau_s, tau_g = (draw(st.floats(1.125, 50, width=32)) for _ in range(3))
    tau_s = draw(st.sampled_from((tau_s, 1.0, tau_m)))
    parameters = SRMParameters(tau_m, tau_s, tau_g, draw(st.sampled_from((0.125, 0.7, 1.0, 3.0))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale, shift = draw(st.sampled_from((0.0, 0.3, 1.0, 30.0))), draw(st.sampled_from((-0.5, 0.0, 0.4, 2.0)))
    current = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift).to(dtype)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if not finite:
        value = draw(st.sampled_from(SPECIAL_VALUES))
        current[tuple(draw(st.integers(0, size - 1)) for size in shape)] = value
    return Case(current, grad, parameters, draw(st.sampled_from(("event", "arctan"))), draw(st.booleans()))


def run(case: Case, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes and both gradients."""
    current, earlier = (case.current.detach().requires_grad_() for _ in range(2))
    options = {"rule": case.rule, "output": case.output, "return_state": False, "batch_first": True}
    with use_backend(backend):
        spikes = scan(current, earlier, case.parameters, None, **options)
    return spikes.detach(), *torch.autograd.grad(spikes, [current, earlier], case.grad)


def select(case: Case, *index: Tensor) -> Case:
    """Some samples, steps and neurons."""
    return case._replace(current=case.current[index], grad=case.grad[index])


def same(results, expected) -> bool:
    return all(
        torch.equal(result.nan_to_num(7.0), other.nan_to_num(7.0)) and torch.equal(result.isnan(), other.isnan())
        for result, other in zip(results, expected, strict=True)
    )


def law(strategy):
    """Runs a test on every backend, with as many examples as its speed allows."""

    def decorate(test):
        @pytest.mark.parametrize("backend", BACKENDS)
        def on_backend(backend, pytestconfig):
            health = [HealthCheck.too_slow, HealthCheck.data_too_large]
            thorough = pytestconfig.getoption("thorough")
            checked = settings(
                max_examples=EXAMPLES[backend] * (20 if thorough else 1),
                derandomize=not thorough,
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
    assert same(run(case._replace(current=current, grad=grad), backend), run(case, backend))


@law(cases())
def test_units_are_free(case, data, backend):
    """Spikes depend on the current in units of the threshold."""
    factor = 2.0 ** data.draw(st.integers(-6, 6))
    dtype = torch.promote_types(case.current.dtype, torch.float32)  # halves lose bits where they are small
    current, p = case.current.to(dtype), case.parameters
    scaled = SRMParameters(p.tau_m, p.tau_s, p.tau_g, p.threshold * factor)
    with use_backend(backend):
        assert torch.equal(srm_scan(current * factor, scaled), srm_scan(current, p))


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
    if case.rule != "event":
        return
    with_event = spikes[:, now] != 0
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


@law(cases(finite=False))
def test_backends_agree(case, data, backend):
    """C in everything, bit for bit; Triton in spikes bit for bit, in gradients to rounding."""
    results, expected = run(case, backend), run(case, "reference")
    assert torch.equal(results[0], expected[0])
    if backend != "triton":
        assert same(results, expected)
    elif case.current.isfinite().all():
        epsilon = torch.finfo(case.current.dtype).eps
        for result, reference in zip(results[1:], expected[1:], strict=True):
            torch.testing.assert_close(result, reference, rtol=8 * epsilon, atol=1e-6 * epsilon, equal_nan=True)


@law(cases())
def test_pieces_are_the_whole(case, data, backend):
    """Wherever a sequence is cut, with the state handed on."""
    at = data.draw(st.integers(0, case.current.shape[1]))
    state, spikes = None, []
    with use_backend(backend):
        for part in (case.current[:, :at], case.current[:, at:]):
            out, state = srm_scan(part, case.parameters, state, return_state=True)
            spikes.append(out)
    assert torch.equal(torch.cat(spikes, 1), run(case, backend)[0])
