"""The command line: exit codes, messages, files."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys

import pytest
import torch
from test_data import write_fashion_mnist

from srm_triton import data, plots, training, tuning, verification
from srm_triton.backend import resolve_backend
from srm_triton.cli import main
from srm_triton.kernels import batch_norm, native, shrink, srm_scan
from srm_triton.kernels.configurations import versions

SMALL = ["train", "--hidden", "64", "--steps", "6", "--epochs", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def printed():
    return io.StringIO()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, printed):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    with contextlib.redirect_stdout(printed):
        assert main([*SMALL, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def without_plots(monkeypatch):
    """Drawing takes longer than the small runs."""
    for name in ("plot_learning", "plot_sample"):
        monkeypatch.setattr(plots, name, lambda *arguments: None)


def test_training_leaves_checkpoint_metrics_and_plots(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["config"]["hidden"] == [64] and len(metrics["history"]) == 2
    assert metrics["test_accuracy"] == metrics["history"][-1]["test_accuracy"] > 0.5
    for name in ("learning.png", "sample.png"):
        content = (finished / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000
    assert len(training.load_checkpoint(finished / "checkpoint.pt").history) == 2


def test_output_names_backend_and_files(finished, printed):
    output = printed.getvalue()
    assert "digits: 1437 training and 360 test samples" in output
    assert "mlp 64-64-10, T = 6, 2 epochs, seed 0" in output
    backend = resolve_backend(torch.device("cpu"), "auto", has_native=True)
    assert f"backend {backend} on cpu" in output
    assert str(finished / "sample.png") in output
    assert "test accuracy" in output and "output 0." in output


def error_of(capsys, arguments: list[str]) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("srm-triton: error: ") and captured.err.count("\n") == 1
    return captured.err


def test_a_run_is_not_replaced_unasked(finished, capsys, tmp_path):
    before = (finished / "checkpoint.pt").read_bytes()
    message = error_of(capsys, [*SMALL, "--output", str(finished)])
    assert "holds a run; add --resume to go on with it or --overwrite to replace it" in message
    assert "--resume and --overwrite exclude each other" in error_of(
        capsys, [*SMALL, "--output", str(finished), "--resume", "--overwrite"]
    )
    assert (finished / "checkpoint.pt").read_bytes() == before
    (tmp_path / "thesis.tex").write_text("years of work")
    message = error_of(capsys, [*SMALL, "--output", str(tmp_path), "--overwrite"])
    assert "holds thesis.tex, which is no part of a run; choose another folder" in message
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_what_a_killed_run_leaves_behind_is_part_of_it(capsys, tmp_path, without_plots):
    (tmp_path / ".checkpoint.pt.partial").write_bytes(b"half")
    assert "holds a run" in error_of(capsys, [*SMALL, "--output", str(tmp_path)])
    assert main([*SMALL, "--output", str(tmp_path), "--overwrite"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "metrics.json"]


def test_resuming(finished, capsys, without_plots):
    message = error_of(capsys, ["train", "--resume", "--output", str(finished), "--steps", "5"])
    assert "its run has steps = 6, the command line says 5" in message
    assert main(["train", "--resume", "--output", str(finished), "--device", "cpu"]) == 0  # finished: draws again
    message = error_of(capsys, ["train", "--resume", "--output", str(finished / "none")])
    assert "holds no checkpoint.pt to go on from; leave out --resume to start a run" in message
    message = error_of(capsys, [*SMALL, "--output", str(finished / "metrics.json")])
    assert "metrics.json: is a file; choose a folder" in message


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_interruption_is_reported_and_resumes(capsys, tmp_path, monkeypatch, without_plots):
    arguments = [*SMALL, "--output", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingRun, "_evaluate", interrupt)
        assert main(arguments) == 130
    assert "Interrupted after epoch 0 of 2, which is saved. Go on with: srm-triton train --output" in (
        capsys.readouterr().err
    )
    assert main([*arguments, "--resume"]) == 0


def test_interruption_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load_digits", interrupt)
    assert main([*SMALL, "--output", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "srm-triton: interrupted\n" and not list(tmp_path.iterdir())


def test_fashion_mnist(capsys, tmp_path, monkeypatch, without_plots):
    folder = tmp_path / "images of clothes"
    message = error_of(capsys, ["train", "--data", "fashion-mnist", "--data-folder", str(folder)])
    assert "no train-images-idx3-ubyte" in message and "dataset-fashion-mnist" in message
    folder.mkdir()
    write_fashion_mnist(folder)
    arguments = ["--data", "fashion-mnist", "--data-folder", str(folder), "--output", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingRun, "_evaluate", interrupt)
        assert main([*SMALL, *arguments]) == 130
    command = shlex.split(capsys.readouterr().err.partition("Go on with: srm-triton ")[2])
    assert main(command) == 0
    assert "mlp 784-64-10" in capsys.readouterr().out
    config = training.load_checkpoint(tmp_path / "run" / training.CHECKPOINT).config
    assert (config.learning_rate, config.desired_rate, config.undesired_rate) == (1e-3, 0.75, 0.125)
    (folder / "train-images-idx3-ubyte").write_bytes(b"nonsense")
    assert "expected an IDX header of 16 bytes" in error_of(capsys, [*SMALL, *arguments, "--overwrite"])


def test_accuracy_below_the_wanted_one_fails(finished, capsys, without_plots):
    resume = ["train", "--resume", "--output", str(finished), "--device", "cpu"]
    assert main([*resume, "--minimum-accuracy", "1.0"]) == 1
    assert "is below 100.00%" in capsys.readouterr().err
    assert main([*resume, "--minimum-accuracy", "0.2"]) == 0


def test_divergence_is_an_error_of_one_line(capsys, tmp_path):
    message = error_of(capsys, [*SMALL, "--learning-rate", "1e30", "--output", str(tmp_path / "run")])
    assert "the gradient is not finite in epoch 1; lower the learning rate, 1e+30" in message


def test_other_errors(capsys, monkeypatch):
    if not torch.cuda.is_available():
        message = error_of(capsys, ["train", "--device", "cuda"])
        assert "--device cuda: this machine has no GPU that PyTorch can use; allowed here: auto, cpu" in message
    assert "steps must be finite and ≥ 1, got 0" in error_of(capsys, ["train", "--steps", "0"])
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert "the package tqdm is missing; in a clone: pip install '.[demo]'" in error_of(capsys, SMALL)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--data", "cifar"])


@pytest.fixture
def few_shapes(monkeypatch, request):
    """A small case of everything, in one dtype; `--thorough` leaves the tables as users have them."""
    if not request.config.getoption("--thorough", False):
        small = {"SCAN": ((2, 5, 7),), "VALUE": ((7,),), "IMAGE": ((2, 3, 5, 7),), "MATRIX": ((5, 3), (90, 2))}
        for kind, shapes in small.items():
            monkeypatch.setattr(verification, f"_{kind}_SHAPES", shapes)
        monkeypatch.setattr(verification, "_TOLERANCES", {torch.float32: 1e-5})
        for name, value in (("TILE", 64), ("WHOLE", 128)):  # in which a matrix of 90 rows is split
            monkeypatch.setattr(batch_norm, name, value)


def test_verify_runs_every_kernel(capsys, monkeypatch, few_shapes):
    modules = (srm_scan, batch_norm, shrink)
    kernels = {name: kernel for module in modules for name, kernel in vars(module).items() if name.endswith("_kernel")}
    launched = set()
    interpreted = type(kernels["srm_scan_forward_kernel"])
    original = interpreted.__getitem__
    monkeypatch.setattr(
        interpreted, "__getitem__", lambda kernel, grid: launched.add(kernel.fn.__name__) or original(kernel, grid)
    )
    assert main(["verify", "--json", "--repeats", "2"]) == 0
    assert launched == kernels.keys()
    report = json.loads(capsys.readouterr().out)
    assert report["failed"] == 0 and all(row["passed"] for row in report["comparisons"])
    for backend in ("triton", "native") if native.problem() is None and not torch.cuda.is_available() else ("triton",):
        rows = [row for row in report["comparisons"] if row["backend"] == backend]
        operations = {"srm_scan", "srm_trace", "denoise_tv"}
        if backend == "triton":
            operations |= {"batch_norm", "soft_threshold"}
        assert {row["operation"].split()[0] for row in rows} == operations


@pytest.mark.parametrize("wrong", ["spikes", "gradient", "nan"])
def test_verify_finds_a_wrong_kernel(wrong, capsys, monkeypatch, few_shapes):
    forward, backward = srm_scan.forward, srm_scan.backward

    def wrong_forward(current, spikes, *arguments):
        forward(current, spikes, *arguments)
        spikes.view(-1)[0] = 1 - spikes.view(-1)[0]

    def wrong_backward(*arguments):
        backward(*arguments)
        arguments[5].mul_(1 + 1e-4 if wrong == "gradient" else float("nan"))

    changed = ("forward", wrong_forward) if wrong == "spikes" else ("backward", wrong_backward)
    monkeypatch.setattr(srm_scan, *changed)
    assert main(["verify", "--repeats", "1"]) == 1
    output = capsys.readouterr().out
    assert "FAILED" in output and ("DIFFERENT" in output) == (wrong == "spikes")
    assert output.count("DIFFERENT  FAILED") == output.count("DIFFERENT")
    assert output.rstrip().endswith("failed") and " 0 failed" not in output


@pytest.mark.skipif(native.problem() is not None, reason="the C library, which serves here for a kernel, is missing")
def test_verify_repeats(capsys, monkeypatch, few_shapes):
    """A kernel that is right twice and then wrong."""
    forward, runs = native.scan_forward, 0

    def unsteady(current, spikes, membrane, gradient_trace, *arguments):
        nonlocal runs
        forward(current, spikes, membrane, gradient_trace, *arguments)
        runs += 1
        if gradient_trace is not None and runs % 3 == 0:
            gradient_trace.view(-1)[0] += 1

    monkeypatch.setattr(native, "scan_forward", unsteady)
    found = [c for c in verification.verify(torch.device("cpu"), 3) if not c.passed]
    assert [(c.backend, c.operation, c.error, c.repeatable) for c in found] == [("native", "srm_trace", 0.0, False)]
    assert "repeats must be at least 1, got 0" in error_of(capsys, ["verify", "--repeats", "0"])


def test_info(capsys, tmp_path):
    cache = tmp_path / "tuning.json"
    tuning.update(cache, {", ".join(versions()): {"block": 32}, "of other versions": {"block": 32}})
    assert main(["info", "--cache", str(cache), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["torch"] == torch.__version__ and report["versions"].keys() == {
        "python",
        "torch",
        "triton",
        "srm_triton",
    }
    assert report["kernels"] == ("compiled" if torch.cuda.is_available() else "interpreted, on tensors of the CPU")
    assert report["devices"][0]["device"] == "cpu"
    assert len(report["devices"]) == 1 + torch.cuda.device_count()
    assert report["tuning"] == {"path": str(cache), "entries": 2, "usable": 1, "problem": None}
    assert main(["info", "--cache", str(cache)]) == 0
    output = capsys.readouterr().out
    assert f"torch {torch.__version__}" in output
    assert f"tuning file {cache}: 2 entries, 1 of them in use\n" in output
    cache.write_text("{")
    assert main(["info", "--cache", str(cache)]) == 0
    assert f"  {cache}: not a whole file of the format" in capsys.readouterr().out


@pytest.mark.parametrize("problem", [None, "not built"])
def test_info_says_what_serves_the_cpu(capsys, tmp_path, monkeypatch, problem):
    monkeypatch.setattr(native, "problem", lambda: problem)
    assert main(["info", "--cache", str(tmp_path / "none.json")]) == 0
    output = capsys.readouterr().out
    assert f"backend {'native' if problem is None else 'reference'}\n" in output
    assert ("  the C library is not built\n" in output) == (problem is not None)


def test_info_without_triton(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert main(["info", "--cache", str(tmp_path / "none.json")]) == 0
    output = capsys.readouterr().out
    assert "triton missing" in output and "Triton kernels: Triton is not installed" in output


def run(*command: str) -> subprocess.CompletedProcess:
    """Runs Python as a user does, who knows nothing of Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


def test_the_command_in_a_process_of_its_own():
    process = run("-m", "srm_triton.cli", "--version")
    assert process.returncode == 0 and process.stdout.startswith("srm-triton 0.")


def test_verify_chooses_the_interpreter_by_itself():
    process = run(
        "-c",
        "import torch; from srm_triton import cli, verification\n"
        "verification._TOLERANCES, verification._SCAN_SHAPES = {torch.float32: 1e-5}, ((2, 5, 7),)\n"
        "raise SystemExit(cli.main(['verify']))",
    )
    assert process.returncode == 0 and process.stdout.endswith("comparisons, 0 failed\n"), process.stderr
