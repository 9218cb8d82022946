"""The command line: exit codes, messages, files."""

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import NAMES, write_fashion_mnist, write_set

import srm_triton
from srm_triton import data, plots, training, tuning, verification
from srm_triton.backend import resolve_backend
from srm_triton.cli import main
from srm_triton.commands.shared import chosen_device
from srm_triton.kernels import batch_norm, native, shrink, srm_scan
from srm_triton.kernels.configurations import versions

SMALL = ["train", "--hidden", "32", "--steps", "6", "--epochs", "2", "--batch-size", "32", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    digits = data.load_digits()
    parts = digits._replace(**{name: getattr(digits, name)[:600] for name in digits._fields[:4]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load_digits", lambda: parts)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*SMALL, "--output", str(folder)]) == 0
    return folder, printed.getvalue()


@pytest.fixture
def without_plots(monkeypatch):
    """Drawing takes longer than the small runs."""
    for name in ("plot_learning", "plot_sample"):
        monkeypatch.setattr(plots, name, lambda *arguments, **options: None)


def error_of(capsys, arguments: list[str]) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("srm-triton: error: ") and captured.err.count("\n") == 1
    return captured.err


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_a_run_leaves_files_and_names_them(finished):
    folder, output = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["recipe"]["network"]["notation"] == "32" and len(metrics["history"]) == 2
    assert metrics["test_accuracy"] == metrics["history"][-1]["accuracy"] > 0.5
    assert metrics["test_after_epoch"] == 2 and metrics["chosen_on"] is None
    for name in ("learning.png", "sample.png"):
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000
    assert len(training.load_checkpoint(folder / "checkpoint.pt").history) == 2
    backend = resolve_backend(torch.device("cpu"), "auto", has_native=True)
    for part in (
        "digits: 600 training and 360 test samples of 1×8×8 in 10 classes\n",
        "network 32, T = 6, surrogate gradient, read-out membrane; cross_entropy; 2 epochs, seed 0\n",
        f"backend {backend} on cpu",
        str(folder / "sample.png"),
        "after epoch 2, the last; nothing was chosen by it;",
        "hidden1 0.",
    ):
        assert part in output


def test_a_run_is_not_replaced_unasked(finished, capsys, tmp_path):
    folder, _ = finished
    before = (folder / "checkpoint.pt").read_bytes()
    arguments = [*SMALL, "--output", str(folder)]
    message = "holds a run; add --resume to go on with it or --overwrite to replace it"
    assert message in error_of(capsys, arguments)
    assert "--resume and --overwrite exclude each other" in error_of(capsys, [*arguments, "--resume", "--overwrite"])
    assert (folder / "checkpoint.pt").read_bytes() == before
    (tmp_path / "thesis.tex").write_text("years of work")
    message = error_of(capsys, [*SMALL, "--output", str(tmp_path), "--overwrite"])
    assert "holds thesis.tex, which is no part of a run; choose another folder" in message
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_what_a_killed_run_leaves_behind_is_part_of_it(capsys, tmp_path, without_plots):
    (tmp_path / ".checkpoint.pt.partial").write_bytes(b"half")
    assert "holds a run" in error_of(capsys, [*SMALL, "--output", str(tmp_path)])
    assert main([*SMALL, "--epochs", "1", "--output", str(tmp_path), "--overwrite"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "metrics.json"]


def test_resuming(finished, capsys, without_plots):
    folder, _ = finished
    resume = ["train", "--resume", "--device", "cpu", "--output"]
    for changed, message in (
        (["--steps", "5"], "its run has another network.steps than the command line says, 5"),
        (["--set", "loss.label_smoothing=0.1"], "its run has another loss.label_smoothing than the command line says"),
        (["--epochs", "1"], "its run has done 2 epochs; schedule.epochs must be as many or more, got 1"),
        (["--recipe", "digits"], "--resume and --recipe exclude each other"),
    ):
        assert message in error_of(capsys, [*resume, str(folder), *changed])
    assert main([*resume, str(folder), "--steps", "6", "--minimum-accuracy", "0.2"]) == 0  # finished: draws again
    assert main([*resume, str(folder), "--minimum-accuracy", "1.0"]) == 1
    assert "is below 100.00%" in capsys.readouterr().err
    message = error_of(capsys, [*resume, str(folder / "none")])
    assert "holds no checkpoint.pt to go on from; leave out --resume to start a run" in message
    message = error_of(capsys, [*SMALL, "--output", str(folder / "metrics.json")])
    assert "metrics.json: is a file; choose a folder" in message


def test_more_epochs(finished, capsys, tmp_path, without_plots):
    shutil.copytree(finished[0], tmp_path / "run")
    resume = ["train", "--resume", "--device", "cpu", "--output", str(tmp_path / "run")]
    assert main([*resume, "--epochs", "3"]) == 0
    output = capsys.readouterr().out
    assert "epoch   3/3" in output and "epoch   2/" not in output
    assert len(training.load_checkpoint(tmp_path / "run" / training.CHECKPOINT).history) == 3


def test_a_recipe_of_a_file_and_what_the_command_line_changes(capsys, tmp_path):
    images, labels = torch.rand(40, 2, 8, 8), torch.arange(40) % 4
    file = tmp_path / "my.toml"
    file.write_text("""
note = "A test."
[network]
notation = "3C3-P2"
readout = "spikes"
[loss]
name = "count_loss"
desired = 2
undesired = 1
[schedule]
epochs = 9
""")
    np.savez(
        tmp_path / "my.npz",
        **{
            name: value
            for part in ("train", "test")
            for name, value in ((f"x_{part}", images[:, 0].numpy()), (f"y_{part}", labels.numpy()))
        },
    )
    arguments = ["train", "--recipe", str(file), "--data", str(tmp_path / "my.npz"), "--epochs", "1", "--device", "cpu"]
    arguments += ["--set", "loss.desired=3", "--set", "schedule.precision=bfloat16", "--set", "schedule.hold_out=8"]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert output.startswith("A test.\n") and "32 training, 8 held-out and 40 test samples of 1×8×8 in 4 cl" in output
    assert "after epoch 1, chosen on 8 held-out samples" in output and "output 0." in output
    recipe = training.load_checkpoint(tmp_path / "run" / training.CHECKPOINT).recipe
    assert recipe.loss == training.Loss("count_loss", {"desired": 3, "undesired": 1})
    assert recipe.schedule == training.Schedule(epochs=1, precision="bfloat16", hold_out=8)
    for name in ("learning.png", "sample.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    message = error_of(capsys, [*arguments, "--network", "P2x4", "--output", str(tmp_path / "other")])
    assert message.startswith(f"srm-triton: error: {file}: [network] notation must leave something of inputs")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("data_set", ["sequence", "units", "colours"])
def test_samples_are_drawn(data_set, tmp_path):
    shape = {"sequence": (4, 2, 6, 5), "units": (4, 7), "colours": (3, 8, 8)}[data_set]
    images, labels = torch.rand(9, *shape), torch.arange(9) % 3
    parts = training.training_data((images, labels), (images, labels), over_time=data_set != "colours")
    recipe = training.Recipe(network=training.Network("5", steps=4))
    run = training.TrainingRun.start(recipe, parts, torch.device("cpu"))
    plots.plot_sample(run.network, *run.sample(), tmp_path / "sample.png")
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")


def test_interruption_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load_digits", interrupt)
    assert main([*SMALL, "--output", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "srm-triton: interrupted\n" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["digits", "fashion-mnist"])
def test_interruption_is_reported_and_resumes(name, capsys, tmp_path, monkeypatch, without_plots):
    folder = tmp_path / "images of clothes"
    arguments = [*SMALL, "--data", name, "--data-folder", str(folder), "--output", str(tmp_path / "run")]
    arguments += ["--set", "schedule.hold_out=0"]
    if name == "fashion-mnist":
        message = error_of(capsys, arguments)
        assert "no train-images-idx3-ubyte" in message and "dataset-fashion-mnist" in message
        folder.mkdir()
        write_fashion_mnist(folder)
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingRun, "_evaluate", interrupt)
        assert main(arguments) == 130
    message, _, command = capsys.readouterr().err.partition("Go on with: srm-triton ")
    assert message.endswith("Interrupted after epoch 0 of 2, which is saved. ")
    assert main(shlex.split(command)) == 0
    assert f"{name}: " in capsys.readouterr().out
    recipe = training.load_checkpoint(tmp_path / "run" / training.CHECKPOINT).recipe
    assert recipe.augmentation.flip == (name == "fashion-mnist")  # its recipe
    if name == "fashion-mnist":
        (folder / "train-images-idx3-ubyte").write_bytes(b"nonsense")
        assert "expected an IDX header of 16 bytes" in error_of(capsys, [*arguments, "--overwrite"])


def test_errors_of_one_line(capsys, tmp_path, monkeypatch):
    message = error_of(capsys, [*SMALL, "--learning-rate", "1e30", "--output", str(tmp_path / "run")])
    assert "the gradient is not finite in epoch 1; lower the learning rate, 1e+30" in message
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert "allowed here: auto, cpu" in error_of(capsys, ["train", "--device", f"cuda:{count}"])
    if not count:
        message = error_of(capsys, ["train", "--device", "cuda"])
        assert "--device cuda: this machine has no GPU that PyTorch can use; allowed here: auto, cpu" in message
    assert "digits: [network] steps must be finite and ≥ 1, got 0" in error_of(capsys, ["train", "--steps", "0"])
    assert "cifar: expected a file .npz or a folder, found nothing" in error_of(capsys, ["train", "--data", "cifar"])
    assert "none: expected a TOML file or one of cifar-10, " in error_of(capsys, ["train", "--recipe", "none"])
    assert "--hidden and --network exclude each other" in error_of(capsys, [*SMALL, "--network", "3"])
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert "the package tqdm is missing; install it by: pip install 'srm-triton[demo]'" in error_of(capsys, SMALL)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--set", "epochs"])
    assert "must be TABLE.KEY=VALUE, such as schedule.epochs=3, got 'epochs'" in capsys.readouterr().err


@pytest.mark.parametrize("accuracy", ["90", "1.01", "-0.1", "nan", "inf", "90%"])
def test_accuracies_are_parts_of_1(accuracy, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*SMALL, "--minimum-accuracy", accuracy])
    assert f"must be a part of 1, such as 0.9 for 90 %, got '{accuracy}'" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["100", "1e-12"])
@pytest.mark.parametrize("epochs", ["1", "2"])
def test_a_run_that_learns_nothing_ends_with_advice(rate, epochs, capsys, tmp_path, without_plots):
    changes = ["--epochs", epochs, "--learning-rate", rate, "--set", "schedule.learning_rate=constant"]
    assert main([*SMALL, *changes, "--output", str(tmp_path / "run")]) == 0
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("srm-triton: warning: ") and "learning rate" in last


def test_letters_are_data_like_digits(capsys, tmp_path, without_plots):
    names = [f"emnist-{kind}-{name.replace('t10k', 'test')}" for kind in ("letters", "digits") for name in NAMES]
    write_set(tmp_path, names[:4], [*range(1, 27)] * 2)
    write_set(tmp_path, names[4:], [*range(10)])
    arguments = [*SMALL, "--data", "emnist-letters", "--data-folder", str(tmp_path), "--output", str(tmp_path / "run")]
    assert main([*arguments, "--epochs", "1"]) == 0
    assert "emnist-letters: 52 training and 52 test samples of 1×5×4 in 26 classes\n" in capsys.readouterr().out


def test_errors_name_the_image_file(capsys, tmp_path):
    whole, small, cut = (tmp_path / name for name in ("whole.png", "small.png", "cut.png"))
    Image.fromarray(np.random.default_rng(0).integers(256, size=(60, 80), dtype=np.uint8)).save(whole)
    Image.fromarray(np.zeros((60, 70), dtype=np.uint8)).save(small)
    cut.write_bytes(whole.read_bytes()[:300])
    denoise = ["denoise", "--device", "cpu"]
    for names, culprit in (
        ((cut, whole), cut),
        ((whole, cut), cut),
        ((tmp_path / "none.png", whole), tmp_path / "none.png"),
        ((whole, tmp_path / "none.png"), tmp_path / "none.png"),
    ):
        message = error_of(capsys, [*denoise, str(names[0]), str(tmp_path / "out.png"), "--reference", str(names[1])])
        assert str(culprit) in message and str(whole) not in message
    message = error_of(capsys, [*denoise, str(whole), str(tmp_path / "out.png"), "--reference", str(small)])
    expected = f"--reference {small}: must have the channels, height and width of {whole}, 1×60×80, got 1×60×70"
    assert expected in message


@pytest.mark.parametrize(("name", "device"), [("auto", "cuda"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_devices(name, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert chosen_device(name) == torch.device(device)
    with pytest.raises(ValueError, match="--device cuda:2; allowed here: auto, cpu, cuda, cuda:0, cuda:1"):
        chosen_device("cuda:2")


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


@pytest.mark.parametrize(
    ("wrong", "launcher", "position", "change"),
    [
        ("spikes", "forward", 3, lambda spikes: spikes.view(-1)[:1].mul_(-1).add_(1)),
        ("gradient", "backward", 7, lambda path: path.mul_(1 + 1e-4)),
        ("nan", "backward", 7, lambda path: path.mul_(float("nan"))),
    ],
)
def test_verify_finds_a_wrong_kernel(wrong, launcher, position, change, capsys, monkeypatch, few_shapes):
    launch = getattr(srm_scan, launcher)
    monkeypatch.setattr(srm_scan, launcher, lambda *tensors: (launch(*tensors), change(tensors[position])))
    assert main(["verify", "--repeats", "1"]) == 1
    output = capsys.readouterr().out
    assert "FAILED" in output and ("DIFFERENT" in output) == (wrong == "spikes")
    assert output.count("DIFFERENT  FAILED") == output.count("DIFFERENT")
    assert output.rstrip().endswith("failed") and " 0 failed" not in output


@pytest.mark.skipif(native.problem() is not None, reason="the C library, which serves here for a kernel, is missing")
def test_verify_repeats(capsys, monkeypatch, few_shapes):
    """A kernel that is right twice and then wrong."""
    forward, runs = native.scan_forward, itertools.count(1)

    def unsteady(*arguments):
        forward(*arguments)
        if arguments[7] is not None and next(runs) % 3 == 0:  # the gradient trace
            arguments[7].view(-1)[0] += 1

    monkeypatch.setattr(native, "scan_forward", unsteady)
    found = [c for c in verification.verify(torch.device("cpu"), 3) if not c.passed]
    assert [(c.backend, c.operation, c.error, c.repeatable) for c in found] == [("native", "srm_trace", 0.0, False)]
    assert "repeats must be finite and ≥ 1, got 0" in error_of(capsys, ["verify", "--repeats", "0"])


def test_info(capsys, tmp_path):
    cache = tmp_path / "tuning.json"
    tuning.update(cache, {", ".join(versions()): {"block": 32}, "of other versions": {"block": 32}})
    assert main(["info", "--cache", str(cache), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"].keys() == {"python", "torch", "triton", "srm_triton"}
    assert report["kernels"] == ("compiled" if torch.cuda.is_available() else "interpreted, on tensors of the CPU")
    assert report["devices"][0]["device"] == "cpu" and len(report["devices"]) == 1 + torch.cuda.device_count()
    assert report["tuning"] == {"path": str(cache), "entries": 2, "usable": 1, "problem": None}


@pytest.mark.parametrize("content", ["none", "entries", "damaged"])
@pytest.mark.parametrize("problem", [None, "not built"])
@pytest.mark.parametrize("triton", [True, False])
def test_info_as_text(triton, problem, content, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "problem", lambda: problem)
    if not triton:
        monkeypatch.setitem(sys.modules, "triton", None)
    cache = tmp_path / "tuning.json"
    if content == "entries":
        tuning.update(cache, {"of other versions": {"block": 32}})
    elif content == "damaged":
        cache.write_text("{")
    assert main(["info", "--cache", str(cache)]) == 0
    output = capsys.readouterr().out
    assert f"torch {torch.__version__}" in output
    assert ("triton missing" in output and "Triton kernels: Triton is not installed" in output) == (not triton)
    assert f"backend {'native' if problem is None else 'reference'}\n" in output
    assert ("  the C library is not built\n" in output) == (problem is not None)
    assert f"tuning file {cache}: {int(content == 'entries')} entries, 0 of them in use\n" in output
    assert (f"  {cache}: not a whole file of the format" in output) == (content == "damaged")


def run(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs Python as a user does, who knows nothing of Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *options, "-c", code], env=environment, capture_output=True, text=True)


def test_the_command_in_a_process_of_its_own_chooses_the_interpreter_by_itself(capsys):
    process = run(
        "import runpy, sys, torch\n"
        "from srm_triton import verification as table\n"
        "table._TOLERANCES, table._SCAN_SHAPES = {torch.float32: 1e-5}, ((2, 5, 7),)\n"
        "table._MATRIX_SHAPES = table._IMAGE_SHAPES = ()\n"
        "sys.argv[1:] = ['verify', '--repeats', '1']\n"
        "runpy.run_module('srm_triton', run_name='__main__')"
    )
    assert process.returncode == 0 and process.stdout.endswith("comparisons, 0 failed\n"), process.stderr
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"srm-triton {srm_triton.__version__}\n"


def test_commands_without_extras(tmp_path):
    missing = ("numpy", "PIL", "h5py", "sklearn", "scipy", "tqdm", "matplotlib")
    commands = [["info"], ["verify", "--repeats", "2"], ["denoise", "a.png", str(tmp_path / "b.png")], ["train"]]
    code = (
        f"import contextlib, io, json, sys\nsys.modules.update(dict.fromkeys({missing}))\n"
        "from srm_triton import cli, verification\n"
        "verification._SCAN_SHAPES = ((2, 5, 7),)\n"
        f"for command in {commands}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:\n"
        "        code = cli.main(command)\n"
        "    print(json.dumps((code, out.getvalue(), err.getvalue())))\n"
    )
    process = run(code, "-W", "error")
    assert process.returncode == 0 and process.stderr == "", process.stderr
    info, verify, denoise, train = map(json.loads, process.stdout.splitlines())
    assert info[0] == 0 and info[2] == "" and "backend " in info[1]
    if native.problem() is None and not torch.cuda.is_available():
        assert verify[0] == 0 and " 0 failed" in verify[1]
        assert "native  srm_scan" in verify[1] and "triton  srm_scan" not in verify[1]
        assert verify[2] == (
            "srm-triton: warning: Triton's kernels are left out: its interpreter needs NumPy; install it by: "
            "pip install 'srm-triton[demo]'\n"
        )
    for (code, _, error), package in ((denoise, "(numpy|PIL)"), (train, "tqdm")):
        remedy = r"install it by: pip install 'srm-triton\[demo\]'"
        assert code == 2
        assert re.fullmatch(rf"srm-triton: error: the package {package} is missing; {remedy}\n", error)


def test_events_name_their_extra(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "shd_train.h5").write_bytes(b"")
    message = error_of(
        capsys, ["train", "--data", "shd", "--data-folder", str(tmp_path), "--output", str(tmp_path / "r")]
    )
    assert message.endswith("the package h5py is missing; install it by: pip install 'srm-triton[events]'\n")
