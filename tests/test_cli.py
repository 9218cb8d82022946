"""The command line: exit codes, messages, files."""

import json
import os
import subprocess
import sys

import pytest
import torch
from test_data import write_fashion_mnist

from srm_triton import training, verification
from srm_triton.cli import main
from srm_triton.kernels import srm_scan

SMALL = ["train", "--hidden", "64", "--steps", "6", "--epochs", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main([*SMALL, "--output", str(folder)]) == 0
    return folder


def test_training_leaves_checkpoint_metrics_and_plots(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["config"]["hidden"] == [64] and len(metrics["history"]) == 2
    assert metrics["test_accuracy"] == metrics["history"][-1]["test_accuracy"] > 0.5
    for name in ("learning.png", "sample.png"):
        content = (finished / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000
    assert len(training.load_checkpoint(finished / "checkpoint.pt").history) == 2


def test_output_names_backend_and_files(capsys, tmp_path):
    assert main([*SMALL, "--output", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "digits: 1437 training and 360 test samples" in output
    assert "mlp 64-64-10, T = 6, 2 epochs, seed 0" in output
    assert "backend reference on cpu" in output
    assert str(tmp_path / "run" / "sample.png") in output
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


def test_resuming(finished, capsys):
    message = error_of(capsys, ["train", "--resume", "--output", str(finished), "--steps", "5"])
    assert "its run has steps = 6, the command line says 5" in message
    assert main(["train", "--resume", "--output", str(finished), "--device", "cpu"]) == 0  # finished: draws again
    assert "No such file" in error_of(capsys, ["train", "--resume", "--output", str(finished / "none")])


def test_interruption_is_reported_and_resumes(capsys, tmp_path, monkeypatch):
    arguments = [*SMALL, "--output", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingRun, "_evaluate", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(arguments) == 130
    assert "Interrupted after epoch 0 of 2, which is saved. Go on with: srm-triton train --output" in (
        capsys.readouterr().err
    )
    assert main([*arguments, "--resume"]) == 0


def test_fashion_mnist(capsys, tmp_path):
    folder = tmp_path / "data"
    message = error_of(capsys, ["train", "--data", "fashion-mnist", "--data-folder", str(folder)])
    assert "no train-images-idx3-ubyte" in message and "dataset-fashion-mnist" in message
    folder.mkdir()
    write_fashion_mnist(folder)
    arguments = ["--data", "fashion-mnist", "--data-folder", str(folder), "--output", str(tmp_path / "run")]
    assert main([*SMALL, *arguments]) == 0
    assert "mlp 784-64-10" in capsys.readouterr().out
    (folder / "train-images-idx3-ubyte").write_bytes(b"nonsense")
    assert "expected an IDX header of 16 bytes" in error_of(capsys, [*SMALL, *arguments, "--overwrite"])


def test_other_errors(capsys, monkeypatch):
    if not torch.cuda.is_available():
        message = error_of(capsys, ["train", "--device", "cuda"])
        assert "--device cuda: this machine has no GPU that PyTorch can use; allowed here: auto, cpu" in message
    assert "steps must be at least 1 and below 2**63, got 0" in error_of(capsys, ["train", "--steps", "0"])
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert "tqdm is missing; pip install 'srm-triton[demo]'" in error_of(capsys, SMALL)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--data", "cifar"])


def test_verify_passes_here(capsys):
    assert main(["verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["failed"] == 0 and len(report["comparisons"]) > 50
    assert {row["operation"].split()[0] for row in report["comparisons"]} == {"srm_scan", "srm_trace", "batch_norm"}


@pytest.mark.parametrize("wrong", ["spikes", "gradient"])
def test_verify_finds_a_wrong_kernel(wrong, capsys, monkeypatch):
    forward, backward = srm_scan.forward, srm_scan.backward

    def wrong_forward(current, spikes, *arguments):
        forward(current, spikes, *arguments)
        spikes.view(-1)[0] = 1 - spikes.view(-1)[0]

    def wrong_backward(*arguments):
        backward(*arguments)
        arguments[4].mul_(1 + 1e-4)

    if wrong == "spikes":
        monkeypatch.setattr(srm_scan, "forward", wrong_forward)
    else:
        monkeypatch.setattr(srm_scan, "backward", wrong_backward)
    monkeypatch.setattr(verification, "_TOLERANCES", {torch.float32: 1e-5})
    assert main(["verify"]) == 1
    output = capsys.readouterr().out
    assert "FAILED" in output and ("DIFFERENT" in output) == (wrong == "spikes")
    assert output.rstrip().endswith("failed") and " 0 failed" not in output


def test_the_installed_command():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = [sys.executable, "-m", "srm_triton.cli", "--version"]
    process = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert process.returncode == 0 and process.stdout.startswith("srm-triton 0.")
