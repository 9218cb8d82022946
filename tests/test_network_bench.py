"""The benchmark of whole networks: sizes, gradients and memory against what is written out here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import harness, network, report, run, srm_scan
from bench.contenders import PublishedLayer
from bench.harness import Contender, UnavailableError
from srm_triton import SRMConv2d, SRMLinear

CONVOLUTIONAL = "32C5-P2-64C5-P2-1024-10"


def built(name: str, width: int = 2) -> tuple[nn.Module, torch.Tensor]:
    hidden, sizes, _ = network.CASES[name]
    inputs = (torch.rand(2, 3, *sizes.values()) < 0.2).float()
    return network.build(hidden, 3, width, *sizes.values()), inputs


@pytest.mark.parametrize(
    ("name", "neurons"),
    [("784-1000-10", 1000 + 10), (CONVOLUTIONAL, 32 * 28 * 28 + 64 * 14 * 14 + 1024 + 10)],
)
def test_an_element_is_a_neuron_at_a_step(name, neurons):
    assert network.neurons_times_steps(*built(name)) == 2 * 3 * neurons


def test_products_alone_are_the_maps_and_the_pooling():
    ours, inputs = built(CONVOLUTIONAL)
    products = network.exchanged(ours, lambda affine: network.Layer(affine, nn.Identity()))
    weights = list(products.parameters())
    assert [tuple(weight.shape) for weight in weights[::2]] == [(32, 1, 5, 5), (64, 32, 5, 5), (1024, 3136), (10, 1024)]
    x = inputs.flatten(0, 1)
    for number in (0, 2):
        x = F.avg_pool2d(F.conv2d(x, *weights[number : number + 2], padding=2), 2)
    x = F.linear(F.linear(x.flatten(1), *weights[4:6]), *weights[6:])
    assert torch.allclose(products(inputs).flatten(0, 1), x, rtol=1e-4, atol=1e-5)


def test_every_layer_of_the_resnet_is_exchanged():
    ours, inputs = built("spiking ResNet-18")
    shapes = {name: tuple(p.shape) for name, p in ours.named_parameters() if name.endswith("weight") and p.dim() > 1}
    neurons = network.neurons_times_steps(ours, inputs)
    counts: list[int] = []
    products = network.exchanged(
        ours, lambda affine: network.Layer(affine, lambda current: counts.append(current.numel()) or current)
    )
    exchanged = {name.replace(".affine", ""): tuple(p.shape) for name, p in products.named_parameters()}
    assert len(shapes) == 1 + 16 + 3 + 1 and exchanged == shapes
    assert products(inputs).shape == (2, 3, 10) and len(counts) == len(shapes) and sum(counts) == neurons


LAYERS = {
    "linear": (SRMLinear(6, 5, gradient="event"), nn.Linear(6, 5), (6,)),
    "convolution": (
        SRMConv2d(2, 4, 3, stride=2, padding=1, gradient="event"),
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        (2, 7, 7),
    ),
    "same": (SRMConv2d(2, 4, 5, padding="same", gradient="event"), nn.Conv2d(2, 4, 5, padding="same"), (2, 6, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_published_layer_computes_what_ours_does(name):
    ours, affine, size = LAYERS[name]
    published = PublishedLayer(affine)
    with torch.no_grad():
        for own, theirs in zip((ours.weight, ours.norm_weight, ours.norm_bias), published.parameters(), strict=True):
            own.copy_(0.7 * torch.randn(own.shape) + 0.2)
            theirs.copy_(own)
    inputs = (torch.rand(3, 8, *size) < 0.5).float().requires_grad_()
    results = []
    for layer in (ours, published):
        spikes = layer(inputs)
        gradient = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(0))
        results.append([spikes, *torch.autograd.grad(spikes, [inputs, *layer.parameters()], gradient)])
    (spikes, *gradients), (others, *their_gradients) = results
    assert 0.1 < spikes.mean() < 0.6 and torch.equal(spikes, others)
    for gradient, other in zip(gradients, their_gradients, strict=True):
        assert gradient.any() and torch.allclose(gradient, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


class Toy(nn.Module):
    """Keeps its product and the square of it, 2 × 40 kB, and has 100 kB at once."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((10_000,), 2.0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        torch.empty(25_000)
        return (inputs * self.scale).square().exp()


def measured(contenders: list[Contender], **options) -> dict:
    with torch.no_grad():
        inputs = torch.linspace(0, 0.1, 10_000)
    return harness.measure(run.rounds(0, 3), contenders, [inputs], **options)


def test_memory_is_counted():
    toy = Contender("toy", Toy, comparable=False)
    record = measured([toy], peak=True, elements=1000)["toy"]
    assert record["kept_bytes"] == 2 * 40  # the argument and the parameter are there anyway
    assert 40 * 4 < record["peak_bytes"] <= 40 * 7
    inference = measured([toy], peak=True, elements=1000, backward=False)["toy"]
    assert inference["peak_bytes"] == 100 and "kept_bytes" not in inference  # two of 40 later
    counted = measured([toy], elements=1000, count_tensors=True)["toy"]
    assert counted["kept_bytes"] == 3 * 40


def test_a_gpu_is_timed_by_events_and_counts_its_memory(monkeypatch):
    """With fakes that write down in which order they are called."""
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.name = f"event {len([call for call in calls if call == 'made']) + 1}"
            calls.append("made")

        def record(self) -> None:
            calls.append(f"{self.name} recorded")

        def synchronize(self) -> None:
            calls.append(f"{self.name} awaited")

        def elapsed_time(self, end: "Event") -> float:
            calls.append(f"from {self.name} to {end.name}")
            return 1500.0

    def answer(name: str, value: int) -> None:
        monkeypatch.setattr(torch.cuda, name, lambda: calls.append(name) or value)

    monkeypatch.setattr(harness, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    answer("memory_allocated", 100)
    answer("reset_peak_memory_stats", 0)
    answer("max_memory_allocated", 350)
    assert harness._seconds(lambda: calls.append("work")) == 1.5
    assert calls[2:] == [
        "event 1 recorded", "work", "event 2 recorded", "event 2 awaited", "from event 1 to event 2",
    ]  # fmt: skip
    calls.clear()
    assert harness._peak_bytes(lambda: calls.append("work")) == 250
    assert calls == ["memory_allocated", "reset_peak_memory_stats", "work", "max_memory_allocated"]


def test_training_computes_the_gradients_of_parameters():
    _, gradient = harness._work(Toy(), [torch.ones(10_000)], backward=True)()
    assert gradient.shape == (10_000,) and gradient.all()


def test_what_lacks_memory_is_left_out():
    def build() -> harness.Function:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nAnd so on")

    records = measured([Contender("large", build), Contender("toy", Toy, comparable=False)])
    assert records["large"] == {"skipped": "CUDA out of memory. Tried to allocate 20 GiB"}
    assert records["toy"]["ratio"] == 1 and records["toy"]["nanoseconds"] > 0
    with pytest.raises(UnavailableError, match="large: CUDA out of memory"):
        measured([Contender("large", build)])


def test_rounds_fill_the_time():
    calls: list[None] = []
    run.rounds(0, 3)(lambda: calls.append(None))
    assert len(calls) == 3
    run.rounds(0.02, 3)(lambda: calls.append(None))
    assert len(calls) > 20


def test_benchmarks_run_without_pytest(tmp_path):
    """In a process that cannot import it; what there is no time for is named, and leaves the code 1."""
    command = "import sys; sys.modules['pytest'] = None; from bench.run import main; sys.exit(main(sys.argv[1:]))"
    options = ["--tiny", "--seconds", "0", "--rounds", "2", "--report", tmp_path, "--device", "cpu"]
    names = ["srm_scan.test_scan", "affine.test_layer", "batch_norm"]

    def call(*more: object) -> subprocess.CompletedProcess[str]:
        given = [sys.executable, "-c", command, *names, *map(str, options), *map(str, more)]
        return subprocess.run(given, cwd=Path(run.__file__).parents[1], text=True, capture_output=True)

    if torch.cuda.is_available():
        pytest.skip("measures on the CPU")
    ended = call("--without", "torch.compile", "--without", "SpikingJelly")
    assert ended.returncode == 0, ended.stderr
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {case["operation"] for case in stored["results"]} == {"srm_scan", "affine", "batch_norm"}
    assert {case["case"] for case in stored["results"] if case["operation"] == "affine"} == {
        "small linear",
        "linear",
        "convolution",
    }
    for case in stored["results"]:
        assert not {"torch.compile", "SpikingJelly"} & case["contenders"].keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_benchmarks_refuse_another_device_and_name_what_they_leave_out(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(["srm_scan", "--device", "cuda", "--report", str(tmp_path)])
    assert "--device cuda" in capsys.readouterr().err and not any(tmp_path.iterdir())
    assert run.main(["srm_scan.test_scan", "--until", "0", "--report", str(tmp_path)]) == 1
    assert "left out, for want of time" in capsys.readouterr().out


def test_a_benchmark_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    def fail(measure):
        raise RuntimeError("a compiler's reason")

    monkeypatch.setattr(srm_scan, "test_scan", fail)
    names = ["srm_scan.test_scan", "srm_scan.test_both_gradients"]
    options = ["--tiny", "--seconds", "0", "--rounds", "2", "--report", str(tmp_path)]
    assert run.main([*names, *options]) == 1
    assert "srm_scan.fail: RuntimeError: a compiler's reason" in capsys.readouterr().out
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {case["case"] for case in stored["results"]} == {"forward and both gradients"}


def test_the_contenders_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(network.test_network, "cases", ("steps, name, mode", [(5, "784-1000-10", "training")]))
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")  # which the run sets
    assert run.main(["network", "--tiny", "--seconds", "0", "--rounds", "2", "--report", str(tmp_path)]) == 0
    (case,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["results"]
    assert case["case"] == "784-1000-10, T = 4, training" and case["shape"] == {"batch": 4, "features": 4}
    records = {name: record for name, record in case["contenders"].items() if "skipped" not in record}
    expected = {"srm-triton", "srm-triton, bfloat16", "published network", "products alone", "products alone, bfloat16"}
    assert next(iter(case["contenders"])) == "srm-triton" and expected <= records.keys()
    lean = records.pop("srm-triton, lean")
    assert 0 < lean["kept_bytes"] < records["srm-triton"]["kept_bytes"] / 2
    assert all(record["peak_bytes"] > record["kept_bytes"] > 3 for record in records.values())
    assert 4 * 0.99 <= records["products alone"]["kept_bytes"] <= 4  # of each hidden neuron its output, for the weight
    assert records["published network"]["kept_bytes"] > 12 > records["srm-triton, bfloat16"]["kept_bytes"]


def example(**machine) -> report.Run:
    record = {"nanoseconds": 0.5, "quartiles": [0.4, 0.6], "ratio": 1.0}
    contenders = {"triton": record, "copy": record | {"nanoseconds": 0.25, "ratio": 0.5, "moved_bytes": 8}}
    case = {"operation": "srm_scan", "case": "forward", "shape": {"n": 1}, "threads": 1, "contenders": contenders}
    return {
        "machine": {"processor": "a processor", "cores": 2, "gpu": None} | machine,
        "versions": {"srm-triton": "1.0"}, "date": "today", "command": "a command", "about": {}, "results": [case],
    }  # fmt: skip


def test_the_page_shows_the_bandwidth_and_the_gpu():
    text = report.page({"results.json": example(gpu="a GPU")})
    assert "| forward: n 1, 1 thread |     16 |   32 |" in text and "No GPU" not in text
    assert "## srm_scan on a GPU\n" in text and "2 cores, a GPU." in text
    both = report.page({"a.json": example(), "b.json": example(processor="another processor")})
    assert "No GPU has run the Triton kernels" in both and "bench.report a.json b.json --page" in both
    assert both.count("| forward: n 1, 1 thread |") == 4 and "another processor, 2 cores, no GPU." in both
    with pytest.raises(ValueError, match=r"b\.json: a dry run"):
        report.page({"a.json": example(), "b.json": example() | {"dry_run": True}})
