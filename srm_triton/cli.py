"""The command line: `srm-triton train` and `srm-triton verify`."""

import argparse
import dataclasses
import importlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch

from srm_triton import data, training
from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.training import CHECKPOINT, LEARNING_PLOT, METRICS, SAMPLE_PLOT, CheckpointError, TrainingConfig

INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended
DEMO_PACKAGES = ("matplotlib", "numpy", "sklearn", "tqdm")
RUN_FILES = (CHECKPOINT, METRICS, LEARNING_PLOT, SAMPLE_PLOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0 for success, 1 for a difference that `verify` found or an accuracy below the wanted one, 2 for an error, 130 after
    Ctrl-C.

    Args:
        arguments: what follows the command's name; None stands for those of this process.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print("srm-triton: interrupted", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        remedy = "; in a clone: pip install '.[demo]'" if error.name in DEMO_PACKAGES else ""
        print(f"srm-triton: error: the package {error.name} is missing{remedy}", file=sys.stderr)
    except (OSError, ValueError, torch.OutOfMemoryError) as error:
        print(f"srm-triton: error: {error}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srm-triton", description="Spiking networks that learn from spike times.")
    parser.add_argument("--version", action="version", version=f"srm-triton {version('srm-triton')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    defaults = TrainingConfig()

    train = commands.add_parser("train", help="train a classifier and plot what it learned")
    train.set_defaults(run=_train)
    train.add_argument("--data", choices=get_args(training.DataName), help=f"data set (default: {defaults.data})")
    train.add_argument(
        "--data-folder",
        type=Path,
        default=data.FASHION_MNIST_FOLDER,
        help="folder with the IDX files of fashion-mnist (default: %(default)s)",
    )
    train.add_argument("--model", choices=get_args(training.ModelName), help=f"network (default: {defaults.model})")
    train.add_argument("--hidden", type=int, nargs="+", help="neurons or channels of each hidden layer")
    for name, meaning in (
        ("steps", "time steps"),
        ("epochs", "passes through the training samples"),
        ("batch_size", "samples in a batch"),
        ("seed", "seed of weights and order of samples"),
    ):
        option = "--" + name.replace("_", "-")
        train.add_argument(option, type=int, help=f"{meaning} (default: {getattr(defaults, name)})")
    train.add_argument("--learning-rate", type=float, help=f"of AdamW at the start (default: {defaults.learning_rate})")
    train.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    train.add_argument("--output", type=Path, default=Path("runs/train"), help="run folder (default: %(default)s)")
    train.add_argument("--minimum-accuracy", type=float, default=0.0, help="exit with 1 if the test accuracy is lower")
    train.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint")
    train.add_argument("--overwrite", action="store_true", help="replace the run in the run folder")

    verify = commands.add_parser("verify", help="compare every Triton kernel with its reference on this machine")
    verify.set_defaults(run=_verify)
    verify.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


# train


def _train(options: argparse.Namespace) -> int:
    for package in ("tqdm", "matplotlib"):
        importlib.import_module(package)  # rather now than after the last epoch
    device = _device(options.device)
    folder: Path = options.output
    run = _resume(options, folder, device) if options.resume else _start(options, folder, device)
    config = run.config
    backend = resolve_backend(device, requested_backend())
    sizes = (run.data.train_images[0].numel(), *config.hidden, run.data.classes)
    print(
        f"{config.data}: {len(run.data.train_labels)} training and {len(run.data.test_labels)} test samples\n"
        f"{config.model} {'-'.join(map(str, sizes))}, T = {config.steps}, {config.epochs} epochs, seed {config.seed}\n"
        f"backend {backend} on {device}",
        flush=True,
    )
    try:
        training.train(run, folder)
    except KeyboardInterrupt:
        saved = len(training.load_checkpoint(folder / CHECKPOINT).history)
        place = "" if config.data == "digits" else f" --data-folder {shlex.quote(str(options.data_folder))}"
        print(
            f"\nInterrupted after epoch {saved} of {config.epochs}, which is saved. "
            f"Go on with: srm-triton train --output {shlex.quote(str(folder))}{place} --resume",
            file=sys.stderr,
        )
        return INTERRUPTED
    _report(run, folder)
    accuracy = run.history[-1].test_accuracy
    if accuracy < options.minimum_accuracy:
        print(f"srm-triton: the test accuracy {accuracy:.2%} is below {options.minimum_accuracy:.2%}", file=sys.stderr)
        return 1
    return 0


def _report(run: training.TrainingRun, folder: Path) -> None:
    from srm_triton.plots import plot_learning, plot_sample

    config = run.config
    run.save_metrics(folder / METRICS)
    plot_learning(run.history, folder / LEARNING_PLOT)
    image, label = run.data.test_images[0], int(run.data.test_labels[0])
    plot_sample(run.network, image, label, config.steps, folder / SAMPLE_PLOT)
    print(f"test accuracy {run.history[-1].test_accuracy:.2%} after {config.epochs} epochs, {run.seconds:.1f} s")
    for name in RUN_FILES:
        print(f"  {folder / name}")


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no GPU that PyTorch can use; allowed here: auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the configuration that the command line sets."""
    fields = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(TrainingConfig)}
    if fields["hidden"] is not None:
        fields["hidden"] = tuple(fields["hidden"])
    return {name: value for name, value in fields.items() if value is not None}


def _load_data(config: TrainingConfig, options: argparse.Namespace) -> data.LabelledImages:
    return data.load_digits() if config.data == "digits" else data.load_fashion_mnist(options.data_folder)


def _start(options: argparse.Namespace, folder: Path, device: torch.device) -> training.TrainingRun:
    config = TrainingConfig(**_given(options))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: is a file; choose a folder")
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = set(present) - {*RUN_FILES, *(training.partial(Path(name)).name for name in RUN_FILES)}
    if foreign:
        raise ValueError(f"--output {folder}: holds {min(foreign)}, which is no part of a run; choose another folder")
    if present and not options.overwrite:
        raise ValueError(f"--output {folder}: holds a run; add --resume to go on with it or --overwrite to replace it")
    run = training.TrainingRun.start(config, _load_data(config, options), device)
    for name in present:
        (folder / name).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return run


def _resume(options: argparse.Namespace, folder: Path, device: torch.device) -> training.TrainingRun:
    if options.overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    if not (folder / CHECKPOINT).is_file():
        raise ValueError(f"--output {folder}: holds no {CHECKPOINT} to go on from; leave out --resume to start a run")
    checkpoint = training.load_checkpoint(folder / CHECKPOINT)
    for name, value in _given(options).items():
        saved = getattr(checkpoint.config, name)
        if value != saved:
            raise CheckpointError(
                f"{checkpoint.path}: its run has {name} = {saved}, the command line says {value}; leave the option "
                "out to go on, or choose another --output"
            )
    return training.TrainingRun.resume(checkpoint, _load_data(checkpoint.config, options), device)


# verify


def _verify(options: argparse.Namespace) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # Triton's own switch, read when it is first imported
    from srm_triton.verification import verify

    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter on the CPU"
    comparisons = []
    if not options.json:
        print(f"Triton kernels against their references: {place}\n")
        print(f"{'operation':34}{'dtype':10}{'shape':16}{'largest error':>14}{'allowed':>10}  spikes")
    for comparison in verify(device):
        comparisons.append(comparison)
        if not options.json:
            spikes = {True: "identical", False: "DIFFERENT", None: "-"}[comparison.identical]
            shape = "x".join(map(str, comparison.shape))
            print(
                f"{comparison.operation:34}{comparison.dtype:10}{shape:16}{comparison.error:14.1e}"
                f"{comparison.tolerance:10.1e}  {spikes}{'' if comparison.passed else '  FAILED'}",
                flush=True,
            )
    failed = sum(not comparison.passed for comparison in comparisons)
    if options.json:
        rows = [{**comparison._asdict(), "passed": comparison.passed} for comparison in comparisons]
        print(json.dumps({"device": place, "failed": failed, "comparisons": rows}, indent=2))
    else:
        print(f"\n{len(comparisons)} comparisons, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
