"""The certificate: the written-out rule is the package's, and without its choices it becomes the derivative."""

import functools
import json
from dataclasses import fields, replace

import pytest
import torch

from srm_triton import SRMParameters, srm_trace
from srm_triton.audit import CHOICES, DERIVATIVE, NETWORKS, PUBLISHED, SWITCHED_OFF, Audit, Convergence, Rule, audit
from srm_triton.audit import gradients as audited
from srm_triton.audit.event_rule import Layer, simulate
from srm_triton.audit.gradients import exact_gradients, interpolated_differences, package_gradients, rule_gradients
from srm_triton.audit.networks import draw
from srm_triton.cli import main
from srm_triton.commands import audit as command

by_name = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
FEW = {"seeds": 2, "networks": NETWORKS[:2], "refinements": (1, 2, 4, 8)}


def errors(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)


def inputs_of(cases, refinement):
    impulses = torch.zeros(len(cases), 16 * refinement, cases[0].impulses.shape[1], dtype=torch.float64)
    for sample, case in enumerate(cases):
        for t, source in case.impulses.nonzero().tolist():
            impulses[sample, t * refinement, source] = 1.0
    return impulses, torch.stack([case.values for case in cases])


@pytest.mark.parametrize("refinement", [1, 3])
def test_neurons_are_those_of_the_package_bit_for_bit(refinement):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(2, 5, 4, generator=generator, dtype=torch.float64)
    impulses = (torch.rand(2, 40, 4, generator=generator) < 0.2).double()
    values = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    (record,) = simulate([Layer(matrix, torch.eye(4, dtype=torch.float64))], impulses, values, refinement)
    current = torch.einsum("bti,bni->tbn", impulses, matrix) + record.constant
    torch.testing.assert_close(record.constant, torch.einsum("bi,bni->bn", values, matrix) / refinement)
    constants = SRMParameters(5.0 * refinement, 3.0 * refinement, 2.5 * refinement)
    trace = srm_trace(current, constants, batch_first=False)
    assert trace.spikes.sum() > 50
    found = record.spikes, record.membrane, record.change, record.trace
    assert all(torch.equal(*pair) for pair in zip(found, (part.transpose(0, 1) for part in trace), strict=True))


@pytest.mark.parametrize("refinement", [1, 4])
@by_name
def test_the_rule_is_the_package_s(network, refinement):
    cases = draw(network, range(5))
    rules = {True: replace(PUBLISHED, would_be=refinement == 1), False: SWITCHED_OFF}
    found = rule_gradients(cases, refinement, rules)
    for published in rules:
        for number, case in enumerate(cases):
            package = package_gradients(case, refinement, published=published)
            for layer, gradient in enumerate(package):
                assert gradient.any()
                assert errors(found[published][layer][number], gradient) < 1e-12  # up to 3e-14


@by_name
def test_every_choice_is_seen_where_it_should_be(network):
    """Whether the gradient of the first layer changes."""
    found = rule_gradients(draw(network, range(9)), 4, CHOICES)
    first = {name: gradients[0] for name, gradients in found.items()}
    changed = {name for name, gradient in first.items() if (errors(gradient, first["no choice"]) > 1e-9).any()}
    pooled, deep = "pool" in network.name, len(network.layers) > 1
    expected = {"slope clamp [0, 4]", "would-be events of silent outputs", "as published"}
    expected |= {"factor 0.85", "time trace τ_g"} if deep else set()
    expected |= {"pooling shares by activity"} if pooled else set()
    expected |= {"convolution times its inputs"} if network.name == "conv-pool-conv" else set()
    expected |= {"these two"} if network.name == "conv-pool-linear" else set()
    expected |= {"reset not differentiated"} if network.constant else set()
    assert changed == expected
    assert {field for rule in CHOICES.values() for field, on in vars(rule).items() if on} == {
        field.name for field in fields(Rule)
    }


def test_factor_and_windows_scale_the_gradient():
    cases = draw(NETWORKS[2], range(3))
    found = rule_gradients(cases, 4, {"none": DERIVATIVE, "factor": Rule(damping=True)})
    for layer, scale in enumerate((0.85**2, 0.85, 1.0)):
        torch.testing.assert_close(found["factor"][layer], found["none"][layer] * scale, rtol=1e-12, atol=0)
    (pooled,) = (network for network in NETWORKS if network.name == "conv-pool-conv")
    both = rule_gradients(draw(pooled, range(3)), 4, {"none": DERIVATIVE, "both": CHOICES["these two"]})
    torch.testing.assert_close(both["both"][0], both["none"][0], rtol=1e-12, atol=0)  # sharing undoes the inputs


@by_name
def test_without_choices_the_rule_becomes_the_derivative(network):
    cases = draw(network, range(9))
    exact = torch.stack([exact_gradients(case)[0] for case in cases])
    coarse, fine = (errors(rule_gradients(cases, n, {"none": DERIVATIVE})["none"][0], exact).median() for n in (16, 64))
    assert fine < (0.07 if "pool" in network.name else 0.012)
    assert fine < coarse / 3.5  # at first order, by 4


@pytest.mark.parametrize("network", NETWORKS[1:4], ids=lambda network: network.name)
def test_the_package_itself_becomes_the_derivative_through_layers(network):
    """By gradient="original", without clamp and factor."""
    cases = draw(network, range(9))
    exact = torch.stack([exact_gradients(case)[0] for case in cases])
    found = [torch.stack([package_gradients(case, n, published=False)[0] for case in cases]) for n in (16, 64)]
    coarse, fine = (errors(gradient, exact).median() for gradient in found)
    assert fine < 0.012 and fine < coarse / 3.5


def test_the_package_itself_is_exact_in_one_layer_without_clamp():
    for case in draw(NETWORKS[0], range(5)):
        exact = exact_gradients(case)[0]
        found = [errors(package_gradients(case, n, published=False)[0], exact) for n in (64, 256, 1024)]
        assert found[-1] < 1.1e-3 and found[0] > 8 * found[-1]


@by_name
def test_finite_differences_of_interpolated_times_become_the_derivative(network):
    cases = draw(network, range(3))
    exact = torch.stack([exact_gradients(case)[0] for case in cases])
    coarse, fine = (errors(interpolated_differences(cases, n), exact).median() for n in (4, 64))
    assert fine < (0.1 if "pool" in network.name else 0.025) and fine < coarse / 4


def test_finite_differences_of_one_layer_are_those_of_the_line_between_two_steps():
    """∂t/∂W of t = step + (θ − u₀)/(u₁ − u₀), with the kernel of each impulse as a sum of powers."""
    refinement, (case,) = 2, draw(NETWORKS[0], [0])
    impulses, _ = inputs_of([case], refinement)
    weight = case.weights[0].view(3, 6)
    decays = [1 - 1 / (tau * refinement) for tau in (5, 3)]

    def kernel(k: int) -> float:
        return 2.5 * (decays[0] ** k - decays[1] ** k) if k > 0 else 0.0

    expected = torch.zeros(3, 6, dtype=torch.float64)
    for neuron in range(3):
        since, rank = 0, 0
        for t in range(16 * refinement):
            before, now = (
                torch.tensor(
                    [sum(impulses[0, j, i].item() * kernel(t - j + k) for j in range(since, t + 1)) for i in range(6)],
                    dtype=torch.float64,
                )
                for k in (0, 1)
            )
            u_before, u = (weight[neuron] @ before).item(), (weight[neuron] @ now).item()
            if u > 1:
                change, fraction = u - u_before, (1 - u_before) / (u - u_before)
                slope = -((1 - fraction) * before + fraction * now) / change / refinement
                expected[neuron] += case.coefficients[neuron, rank] * slope
                since, rank = t + 1, rank + 1
    found = interpolated_differences([case], refinement)[0]
    torch.testing.assert_close(found, expected.flatten(), rtol=0, atol=1e-8 * expected.abs().max())


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(command, "audit", functools.partial(audit, **FEW))


def test_audit_reports(few, capsys, tmp_path, number_of_threads):
    path = tmp_path / "audit.md"
    number_of_threads(2)
    code = main(["audit", "--output", str(path)])
    printed = capsys.readouterr().out
    assert torch.get_num_threads() == 2
    assert path.read_text(encoding="utf-8") == printed
    assert main(["audit", "--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] == (code == 0) == printed.endswith("\npassed\n")
    assert len(report["convergence"]) == 10 and len(report["deviations"]) == 2 * len(CHOICES)
    lines = printed.splitlines()
    for row in report["convergence"]:
        shown = [
            cell.strip()
            for cell in next(
                line
                for line in lines
                if [c.strip() for c in line.split("|")[1:4]] == [row["network"], row["gradient"], row["reference"]]
            ).split("|")
        ]
        assert shown[4:8] == [f"{error:.3f}" for error in row["errors"]]
    table = {cells[1].strip(): cells for cells in (line.split("|") for line in lines) if len(cells) == 5}
    for column, network in enumerate(NETWORKS[:2]):
        for row in (row for row in report["deviations"] if row["network"] == network.name):
            cell = table[row["choice"]][2 + column].split()
            dash = not row["applies"] and row["choice"] != "no choice"
            assert cell == (["–"] if dash else [f"{row['error']:.3f}", f"{row['cosine']:.3f}"])
    widths = {len(line) for line in lines if line.startswith("| ")}
    assert len(widths) == 2  # one for each table


def test_audit_needs_no_gradients_to_be_on_and_draws_no_global_numbers():
    state = torch.get_rng_state()
    with torch.no_grad():
        assert audit(**FEW) == audit(**FEW)
    assert torch.equal(torch.get_rng_state(), state)


def test_audit_of_nothing_does_not_pass():
    assert passing().passed and not passing(convergence=[]).passed


def test_audit_is_the_same_every_time():
    assert audit(**FEW) == audit(**FEW)


def test_bad_outputs(few, capsys, tmp_path):
    path = tmp_path / "audit.md"
    path.write_text("mine")
    assert main(["audit", "--output", str(path)]) == 2
    assert f"--output {path}: exists; choose another name, or add --overwrite" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert main(["audit", "--output", str(tmp_path / "none" / "a.md")]) == 2
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err
    main(["audit", "--output", str(path), "--overwrite"])
    assert path.read_text(encoding="utf-8") == capsys.readouterr().out


@pytest.mark.parametrize("wrong", [1 + 1e-9, float("nan")])
def test_audit_fails_where_the_package_differs(wrong, few, capsys, monkeypatch):
    backward = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a: [grad * wrong for grad in backward(*a)])
    assert main(["audit"]) == 1
    printed = capsys.readouterr().out
    assert printed.endswith("\nFAILED\n") and f"the package within {'nan' if wrong != wrong else '1e-09'} of" in printed


def passing(**changes) -> Audit:
    row = Convergence("n", "no choice", "EventProp", (0.8, 0.4, 0.2, 0.1, 0.05))
    return Audit(1, (1, 2, 4, 8, 16), 1e-10, 1e-14, [row], [])._replace(**changes)


def test_what_passes():
    assert passing().convergence[0].order == pytest.approx(1.0)
    assert passing().passed
    for errors_ in ((0.05, 0.05, 0.05, 0.05), (1.6, 0.8, 0.4, 0.2), (0.2, 0.1, 0.05, float("nan")), (1, 1, 1, 0.0)):
        row = Convergence("n", "no choice", "EventProp", errors_)
        assert not passing(convergence=[*passing().convergence, row]).passed
        assert passing(convergence=[*passing().convergence, row._replace(gradient="as published")]).passed
    for field in ("eventprop_error", "package_error"):
        assert not passing(**{field: 1e-6}).passed and not passing(**{field: float("nan")}).passed


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seeds": 0}, ValueError, "seeds must be finite and ≥ 1, got 0"),
        ({"seeds": 2.0}, TypeError, "seeds must be an int, got 2.0"),
        ({"refinements": (1, 2, 4)}, ValueError, r"refinements must be four or more, .* got \(1, 2, 4\)"),
        ({"refinements": (1, 2, 4, 9)}, ValueError, "each twice the one before"),
        ({"networks": ()}, ValueError, "networks must hold at least one"),
        ({"refinements": (0, 0, 0, 0)}, ValueError, "refinements must be finite and ≥ 1, got 0"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        audit(**options)


def test_networks_are_what_they_are_called():
    """Most last outputs are silent, the others fire once to a few times."""
    for network in NETWORKS:
        cases = draw(network, range(9))
        parts = cases[0].parts
        weights = [torch.stack([case.weights[number] for case in cases]) for number in range(len(parts))]
        layers = [part.matrix(weight) for part, weight in zip(parts, weights, strict=True)]
        counts = simulate(layers, *inputs_of(cases, 64), 64)[-1].spikes.sum(1)
        assert (counts[:, -1] == 0).sum() >= 7 and 1.5 < counts[:, :-1].mean() < 5
        assert torch.equal(inputs_of(cases, 2)[0], audited._inputs(cases, 2)[0])
