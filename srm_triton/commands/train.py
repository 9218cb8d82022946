"""`srm-triton train`: trains a classifier and plots what it learned."""

import argparse
import dataclasses
import importlib
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import torch

from srm_triton import data, training
from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.commands.shared import INTERRUPTED, Commands, add_device, chosen_device
from srm_triton.files import partial
from srm_triton.training import CHECKPOINT, LEARNING_PLOT, METRICS, SAMPLE_PLOT, CheckpointError, TrainingConfig

RUN_FILES = (CHECKPOINT, METRICS, LEARNING_PLOT, SAMPLE_PLOT)


def add_parser(commands: Commands) -> None:
    """Adds the parser of `srm-triton train`."""
    defaults = TrainingConfig()
    of_fashion = training.usual_config("fashion-mnist")
    parser = commands.add_parser("train", help="train a classifier and plot what it learned")
    parser.set_defaults(run=_train)
    parser.add_argument("--data", choices=get_args(training.DataName), help=f"data set (default: {defaults.data})")
    parser.add_argument(
        "--data-folder",
        type=Path,
        default=data.FASHION_MNIST_FOLDER,
        help="folder with the IDX files of fashion-mnist (default: %(default)s)",
    )
    parser.add_argument("--model", choices=get_args(training.ModelName), help=f"network (default: {defaults.model})")
    parser.add_argument("--hidden", type=int, nargs="+", help="neurons or channels of each hidden layer")
    for name, kind, meaning in (
        ("steps", int, "time steps"),
        ("epochs", int, "passes through the training samples"),
        ("batch_size", int, "samples in a batch"),
        ("seed", int, "seed of weights and order of samples"),
        ("learning_rate", float, "of AdamW at the start"),
        ("desired_rate", float, "spikes per step wanted of the labelled output neuron"),
        ("undesired_rate", float, "spikes per step allowed to the other output neurons"),
    ):
        default, fashion = getattr(defaults, name), getattr(of_fashion, name)
        known = f"default: {default}" if default == fashion else f"default: {default}, with fashion-mnist {fashion}"
        parser.add_argument("--" + name.replace("_", "-"), type=kind, help=f"{meaning} ({known})")
    add_device(parser)
    parser.add_argument("--output", type=Path, default=Path("runs/train"), help="run folder (default: %(default)s)")
    parser.add_argument("--minimum-accuracy", type=float, default=0.0, help="exit with 1 if the test accuracy is lower")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the run folder")


def _train(options: argparse.Namespace) -> int:
    """Trains or resumes a run, and returns the exit code: 1 for an accuracy below the wanted one, 130 after Ctrl-C."""
    for package in ("tqdm", "matplotlib"):
        importlib.import_module(package)  # rather now than after the last epoch
    device = chosen_device(options.device)
    folder: Path = options.output
    run = _resume(options, folder, device) if options.resume else _start(options, folder, device)
    config = run.config
    backend = resolve_backend(device, requested_backend(), has_native=True)
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


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of the configuration that the command line sets."""
    fields = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(TrainingConfig)}
    if fields["hidden"] is not None:
        fields["hidden"] = tuple(fields["hidden"])
    return {name: value for name, value in fields.items() if value is not None}


def _load_data(config: TrainingConfig, options: argparse.Namespace) -> data.LabelledImages:
    return data.load_digits() if config.data == "digits" else data.load_fashion_mnist(options.data_folder)


def _start(options: argparse.Namespace, folder: Path, device: torch.device) -> training.TrainingRun:
    config = training.usual_config(**_given(options))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: is a file; choose a folder")
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = set(present) - {*RUN_FILES, *(partial(Path(name)).name for name in RUN_FILES)}
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
