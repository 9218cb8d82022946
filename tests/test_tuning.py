"""Tuning: the candidates and their timing."""

import pytest
import torch
from torch import nn

from srm_triton import SRMLinear, SRMNeuron, SRMParameters, srm_trace, tuning, use_backend
from srm_triton.kernels import launch
from srm_triton.kernels import srm_scan as kernel
from srm_triton.kernels.configurations import CANDIDATES, Configuration
from srm_triton.ops import srm_scan as operation
from srm_triton.ops.srm_scan import scan_backward, scan_forward
from srm_triton.tuning_cache import Case, Entry, TuningCache, current_versions, inspect

FORWARD, BACKWARD = CANDIDATES


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 37), (20, 3, 2), (2, 17, 5, 7)])
@pytest.mark.parametrize("time_axis", [0, 1])
def test_every_configuration_gives_the_same_bits(monkeypatch, device, shape, time_axis):
    generator = torch.Generator().manual_seed(0)
    current, grad = (torch.randn(shape, generator=generator).to(device) + 0.3 for _ in range(2))
    if time_axis == 0:
        current, grad = current.transpose(0, 1).contiguous(), grad.transpose(0, 1).contiguous()

    def run(number: int | None) -> list[torch.Tensor]:
        def find(name: str, *_) -> Configuration | None:
            return None if number is None else CANDIDATES[name][number]

        monkeypatch.setattr(operation, "find_configuration", find)
        with use_backend("triton"):
            spikes, states = scan_forward(current, SRMParameters(), time_axis, True)
            paths = scan_backward(grad, current, states, None, SRMParameters(), time_axis, True, True, "triton")
            return [spikes, states, *paths, *srm_trace(current, batch_first=time_axis == 1)]

    expected = run(None)
    assert expected[0].numel() == 1 or expected[0].any()
    for number in range(8):
        assert all(map(torch.equal, run(number), expected)), number


def test_candidates_are_few_and_include_the_usual_ones(monkeypatch):
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    for name, elements in ((FORWARD, 2), (BACKWARD, 1)):
        assert len(set(CANDIDATES[name])) == len(CANDIDATES[name]) == 8
        for neurons in (1, 1 << 15, 1 << 20):
            assert kernel.usual_configuration(neurons, elements) in CANDIDATES[name]
        for candidate in CANDIDATES[name]:
            assert candidate.block & (candidate.block - 1) == 0
            assert 1 <= candidate.block / (32 * candidate.num_warps) <= 4


class FakeTimer:
    """Launches once, and says that one candidate of each kernel is the fastest."""

    def __init__(self, fastest: Configuration) -> None:
        self.fastest = fastest

    def __call__(self, launch) -> float:
        launch()
        (configuration,) = launch.args
        return 0.5 if configuration == self.fastest else 2.0 if configuration is None else 1.0


@pytest.mark.parametrize("shape", [(4, 6, 10), (2, 17, 3, 3)])
def test_the_fastest_candidate_is_kept(tmp_path, device, shape):
    fastest = Configuration(128, 4)
    progress = []
    results = list(
        tuning.tune(
            shape, torch.float32, device, timer=FakeTimer(fastest), after_trial=lambda: progress.append(None)
        )
    )  # fmt: skip
    assert len(progress) == 16
    for result, name in zip(results, CANDIDATES, strict=True):
        neurons = 40 if len(shape) == 3 else 18
        assert result.case == Case.of(name, device, torch.float32, shape[1], neurons)
        assert result.usual_milliseconds == 2.0
        assert [trial.configuration for trial in result.trials] == list(CANDIDATES[name])
        assert {(trial.milliseconds, trial.failure) for trial in result.trials} == {(0.5, None), (1.0, None)}
        assert result.entry == Entry(result.case, current_versions(), fastest, 0.5)
        TuningCache(tmp_path / "tuning.json").update([result.entry])
    assert set(inspect(tmp_path / "tuning.json").configurations.values()) == {fastest}


def test_tuning_leaves_the_random_numbers_of_the_program_alone(device):
    state = torch.random.get_rng_state()
    list(tuning.tune((1, 2, 3), torch.float32, device, timer=FakeTimer(Configuration(32, 1))))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_shapes_of_a_model(device):
    """Each layer's, time first or not; the model stays as it was."""
    normalised = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(6), nn.Unflatten(0, (2, 5)))
    model = nn.Sequential(normalised, SRMLinear(6, 4, batch_first=False), SRMNeuron()).to(device)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert tuning.current_shapes(model, torch.rand(2, 5, 6, device=device)) == [(5, 2, 4), (2, 5, 4)]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("failing", [{Configuration(64, 1)}, {*CANDIDATES[FORWARD], *CANDIDATES[BACKWARD]}])
def test_candidates_that_fail_are_left_out(monkeypatch, device, failing):
    forward, backward = kernel.forward, kernel.backward

    def failing_forward(*arguments) -> None:
        if arguments[-1] in failing:
            raise RuntimeError("out of resource: shared memory\nmany more lines")
        forward(*arguments)

    def wrong_backward(*arguments) -> None:
        results = [gradient.clone() for gradient in arguments[4:6]]
        backward(*arguments)
        if arguments[-1] in failing:  # the last step is not written
            for gradient, before in zip(arguments[4:6], results, strict=True):
                gradient[:, -1] = before[:, -1]

    monkeypatch.setattr(kernel, "forward", failing_forward)
    monkeypatch.setattr(kernel, "backward", wrong_backward)
    results = list(tuning.tune((2, 3, 4), torch.float32, device, timer=FakeTimer(Configuration(64, 1))))
    failures = [
        "RuntimeError: out of resource: shared memory",
        "its results differ from those of the usual configuration",
    ]
    for result, failure in zip(results, failures, strict=True):
        for trial in result.trials:
            wrong = trial.configuration in failing
            assert (trial.milliseconds, trial.failure) == ((None, failure) if wrong else (1.0, None))
        assert (result.entry is None) == (len(failing) > 1)


@pytest.mark.parametrize("shape", [(4,), (4, 0, 3)])
def test_shapes_that_cannot_be_tuned(device, shape):
    with pytest.raises(ValueError, match=r"shape must be \[batch, time, ...\], each at least 1, got \["):
        next(tuning.tune(shape, torch.float32, device))


def test_without_a_gpu_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    with pytest.raises(RuntimeError, match="backend 'triton' runs CPU tensors only in Triton's interpreter"):
        next(tuning.tune((1, 2, 3), torch.float32, torch.device("cpu")))


def test_the_timer_is_tritons(monkeypatch):
    from triton import testing

    monkeypatch.setattr(testing, "do_bench", lambda launch, return_mode: (launch, return_mode) == (len, "median"))
    assert tuning.time_on_gpu(len) == 1.0
