"""What pictures show, read back from their axes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from srm_triton import (
    SRMLinear,
    SRMParameters,
    calibrate_gain,
    data,
    plots,
    spiking_network,
    srm_trace,
    training,
    watch,
)
from srm_triton.cli import main
from srm_triton.plots.style import MARKERS, SERIES, figure, series

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def lines(axes):
    """What is drawn under each name of the legend."""
    return {line.get_label(): [list(map(float, part)) for part in line.get_data()] for line in axes.get_lines()}


def draw(axes):
    """Warnings and errors of drawing come late."""
    axes.figure.canvas.draw()
    return axes


def test_raster():
    spikes = torch.zeros(6, 2, 4)
    spikes[1, 0, 2] = spikes[5, 1, 3] = spikes[1, 1, 0] = 1
    axes = draw(plots.raster(spikes, title="hidden1"))
    (marks,) = axes.collections
    assert marks.get_offsets().tolist() == [[1, 2], [1, 4], [5, 7]]
    assert axes.get_title() == "hidden1, 3 spikes" and axes.get_xlim() == (-0.5, 5.5) and axes.get_ylim() == (-0.5, 7.5)
    assert draw(plots.raster(torch.zeros(30, 100))).get_title() == "0 spikes"


def test_membrane():
    trace = srm_trace(torch.rand(1, 40, 2), SRMParameters(threshold=0.7))
    axes = draw(plots.membrane(trace.membrane[0], trace.spikes[0], 0.7))
    drawn = [line.get_data() for line in axes.get_lines()]
    for neuron in range(2):
        potential = trace.membrane[0, :, neuron]
        fired = trace.spikes[0, :, neuron].nonzero().flatten()
        assert len(fired) > 2
        assert drawn[2 * neuron][1].tolist() == potential.tolist()
        assert drawn[2 * neuron + 1][0].tolist() == fired.tolist()
        assert drawn[2 * neuron + 1][1].tolist() == potential[fired].tolist()
    assert lines(axes)["threshold"][1] == [0.7, 0.7]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["neuron 0", "neuron 1", "spike", "threshold"]
    alone = draw(plots.membrane(trace.membrane[0, :, 0].requires_grad_()))
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["potential"]


def test_firing_rates():
    rates = {"hidden1": [0.1, 0.3], "output": [0.0, 0.05]}
    history = [training.EpochRecord(e + 1, 1.0, 0.5, 0.5, {k: v[e] for k, v in rates.items()}) for e in range(2)]
    for given in (rates, history):
        axes = draw(plots.firing_rates(given))
        assert lines(axes) == {name: [[1, 2], values] for name, values in rates.items()}
        assert axes.get_ylim() == (0, pytest.approx(0.33))
    assert draw(plots.firing_rates({"a": [0.0]})).get_ylim() == (0, 1)


def test_every_series_can_be_told_from_the_others():
    drawn = {(style["color"], style["marker"]) for style in map(series, range(49))}
    assert len(drawn) == 49 and len(set(SERIES)) == len(set(MARKERS)) == 7


def report(silent=False):
    model = spiking_network("8-8", 4, 3, steps=10, readout="spikes", gradient="event")
    inputs = torch.rand(8, 10, 4)
    calibrate_gain(model, inputs)
    if silent:
        model[1].neuron.threshold = 1e6
    with watch(model, show=None) as watcher:
        model(inputs).sum().backward()
    return watcher.report()


def test_gradient_health():
    found = report()
    axes = draw(plots.gradient_health(found))
    drawn = lines(axes)
    assert drawn["at its weights"] == [[0, 1, 2], [layer.weight_gradient for layer in found.layers]]
    assert drawn["at its spikes"] == [[0, 1, 2], [layer.spike_gradient for layer in found.layers]]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[0] == f"hidden1\nrate {found.layers[0].rate:.2g}\nsilent {100 * found.layers[0].silent:.0f} %"
    assert axes.get_yscale() == "log" and axes.get_title() == "Gradients, no findings"
    assert not any(line.get_marker() == "x" for line in axes.get_lines() if len(line.get_xdata()))


def test_gradient_health_of_a_silent_layer():
    found = report(silent=True)
    axes = draw(plots.gradient_health(found))
    crosses = [list(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "x"]
    zero = [[n for n, layer in enumerate(found.layers) if getattr(layer, name) == 0] for name in _NORMS]
    assert crosses[:2] == zero and 1 in zero[0]
    colors = [label.get_color() for label in axes.get_xticklabels()]
    named = {finding.layer for finding in found.findings}
    assert [color != "black" for color in colors] == [layer.name in named for layer in found.layers]
    assert "hidden2" in named and f"{len(found.findings)} finding" in axes.get_title()


_NORMS = ("weight_gradient", "spike_gradient")


def test_confusion_matrix():
    labels = torch.tensor([0, 0, 1, 2, 2, 2], dtype=torch.int32)
    predictions = torch.tensor([0, 1, 1, 2, 2, 0])
    axes = draw(plots.confusion_matrix(predictions, labels, names=["cat", "dog", "horse", "never"]))
    (image,) = axes.images
    shares = torch.tensor([[0.5, 0.5, 0, 0], [0, 1, 0, 0], [1 / 3, 0, 2 / 3, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(torch.tensor(image.get_array().tolist()), shares)
    counts = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "1", (1, 0): "1", (1, 1): "1", (0, 2): "1", (2, 2): "2"}  # column, row
    assert axes.get_title() == "4 of 6 right, 66.7 %"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "horse", "never"]
    many = torch.arange(40)
    assert not draw(plots.confusion_matrix(many, many)).texts


def test_roofline():
    run = json.loads((ROOT / "bench" / "results" / "intel-xeon-2-cores.json").read_text())
    axes = draw(plots.roofline(run))
    cases = [case for case in run["results"] if "copy" in case["contenders"]]
    assert len(axes.get_yticklabels()) == len(cases) > 10
    speeds, rows = lines(axes)["native"]
    expected = {
        row: times["copy"]["nanoseconds"] / times["native"]["nanoseconds"]
        for row, times in enumerate(case["contenders"] for case in cases)
        if "nanoseconds" in times.get("native", {})
    }
    assert dict(zip(rows, speeds, strict=True)) == expected
    assert lines(axes)["roof: a copy of as many bytes"][0] == [1, 1]
    low, high = axes.get_xlim()
    assert low < min(speeds) and high > 1
    moved = {
        "operation": "a",
        "case": "b",
        "threads": 2,
        "contenders": {"copy": {"nanoseconds": 2.0, "moved_bytes": 8}},
    }
    assert plots.roofline({"results": [moved]}).get_yticklabels()[0].get_text() == "a, b, 2 threads (4 GB/s)"


def test_axes_that_are_handed_in_are_drawn_on():
    rates, run = {"a": [0.1]}, {"results": [{"operation": "a", "case": "b", "threads": 1, "contenders": {}}]}
    run["results"][0]["contenders"] = {"copy": {"nanoseconds": 1.0}, "native": {"nanoseconds": 2.0}}
    ones = torch.ones(3, dtype=torch.int64)
    for function, arguments in (
        (plots.raster, [torch.ones(3, 4)]),
        (plots.membrane, [torch.ones(3, 4)]),
        (plots.firing_rates, [rates]),
        (plots.gradient_health, [report()]),
        (plots.confusion_matrix, [ones, ones]),
        (plots.roofline, [run]),
    ):
        axes = figure(4, 3).add_subplot()
        assert function(*arguments, axes=axes) is axes and axes.has_data()


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plots.raster([[1.0]]), TypeError, r"spikes must be a torch\.Tensor, got list"),
        (lambda: plots.raster(torch.ones(3)), ValueError, r"spikes must have the shape \[time, neurons, \.\.\.\]"),
        (
            lambda: plots.membrane(torch.ones(3, 8)),
            ValueError,
            r"potential must have the shape .* of at most 7 neurons",
        ),
        (lambda: plots.membrane(torch.ones(3), torch.ones(4)), ValueError, r"spikes must have the shape of potential"),
        (lambda: plots.firing_rates([]), ValueError, r"history must hold rates of at least one layer and epoch"),
        (lambda: plots.firing_rates({"a": []}), ValueError, r"history must hold rates"),
        (lambda: plots.gradient_health("a"), TypeError, r"report must be a Report.*got str"),
        (lambda: plots.gradient_health(forward_only()), ValueError, r"report must have seen a backward"),
        (
            lambda: plots.confusion_matrix(torch.ones(2), torch.ones(2)),
            TypeError,
            r"predictions must be a tensor of int",
        ),
        (
            lambda: plots.confusion_matrix(*classes([0, 1], [0])),
            ValueError,
            r"predictions must have the shape \[samples\]",
        ),
        (lambda: plots.confusion_matrix(*classes([], [])), ValueError, r"at least 1, got \[0\]"),
        (lambda: plots.confusion_matrix(*classes([0], [-1])), ValueError, r"labels must be classes from 0 on, got -1"),
        (
            lambda: plots.confusion_matrix(*classes([0], [2]), names=["a"]),
            ValueError,
            r"names must hold one for each of 3",
        ),
        (lambda: plots.roofline([]), TypeError, r"run must be what a file of bench/results holds"),
        (lambda: plots.roofline({"results": []}), ValueError, r"run must hold a case with a copy beside it"),
    ],
)
def test_what_cannot_be_drawn(draw, error, message):
    with pytest.raises(error, match=message):
        draw()


def classes(predictions, labels):
    return torch.tensor(predictions, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)


def forward_only():
    with watch(nn.Sequential(SRMLinear(4, 3)), show=None) as watcher, torch.no_grad():
        watcher.report()
    return watcher.report()


def test_pyplot_stays_out_of_it():
    program = (
        "import sys, torch\nfrom srm_triton import plots\nassert 'matplotlib' not in sys.modules\n"
        "plots.raster(torch.ones(3, 4)).figure.canvas.draw()\nassert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_the_command_line_draws_more_where_it_is_asked(tmp_path, monkeypatch, capsys):
    digits, drawn = data.load_digits(), {}
    parts = digits._replace(**{name: getattr(digits, name)[:300] for name in digits._fields[:4]})
    monkeypatch.setattr(data, "load_digits", lambda: parts)
    monkeypatch.setattr(plots, "plot_learning", lambda *arguments, **options: None)
    monkeypatch.setattr(plots, "plot_sample", lambda *arguments, **options: None)
    draw_run = plots.plot_run

    def plot_run(*arguments):
        drawn.update(zip(("report", "predictions", "labels"), arguments, strict=False))
        draw_run(*arguments)

    monkeypatch.setattr(plots, "plot_run", plot_run)
    arguments = ["train", "--hidden", "8", "--steps", "4", "--epochs", "3", "--device", "cpu"]
    arguments += ["--set", "schedule.hold_out=60", "--set", "optimizer.learning_rate=0.1", "--plots"]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "run.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "run" / "run.png") in capsys.readouterr().out
    accuracy = json.loads((tmp_path / "run" / "metrics.json").read_text())["test_accuracy"]
    assert (drawn["predictions"] == drawn["labels"]).double().mean().item() == pytest.approx(accuracy, abs=1e-12)
    assert [layer.name for layer in drawn["report"].layers] == ["hidden1"]
    assert main([*arguments[:-1], "--overwrite", "--output", str(tmp_path / "run")]) == 0
    assert "run.png" not in capsys.readouterr().out and not (tmp_path / "run" / "run.png").exists()
