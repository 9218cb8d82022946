"""`srm-triton train`: trains a classifier by a recipe and plots what it learned."""

import argparse
import importlib
import math
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import torch

from srm_triton import training
from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.commands.shared import INTERRUPTED, Commands, add_device, chosen_device
from srm_triton.files import partial
from srm_triton.training import CHECKPOINT, LEARNING_PLOT, METRICS, RUN_PLOT, SAMPLE_PLOT, CheckpointError, RecipeError

RUN_FILES = (CHECKPOINT, METRICS, LEARNING_PLOT, SAMPLE_PLOT, RUN_PLOT)
FLAGS: dict[str, tuple[str, Any, str]] = {
    "data": ("data.name", str, "data set, or a file or folder of images"),
    "data_folder": ("data.folder", str, "where a data set's files lie"),
    "network": ("network.notation", str, "hidden layers, such as 32C5-P2-100"),
    "hidden": ("network.notation", int, "neurons of each fully connected hidden layer"),
    "steps": ("network.steps", int, "time steps"),
    "epochs": ("schedule.epochs", int, "passes through the training samples; with --resume, more of them"),
    "batch_size": ("schedule.batch_size", int, "samples in a batch"),
    "learning_rate": ("optimizer.learning_rate", float, "of the optimizer, at the start"),
    "seed": ("seed", int, "of all random numbers"),
}
CHANGEABLE = ("schedule.epochs", "data.folder", "data.workers")  # of a run that has begun


def add_parser(commands: Commands) -> None:
    """Adds the parser of `srm-triton train`."""
    parser = commands.add_parser("train", help="train a classifier by a recipe and plot what it learned")
    parser.set_defaults(run=_train)
    names = ", ".join(training.built_in_recipes())
    parser.add_argument("--recipe", help=f"TOML file, or one of {names} (default: that of the data, or digits)")
    for name, (key, kind, meaning) in FLAGS.items():
        parser.add_argument(
            "--" + name.replace("_", "-"), type=kind, nargs="+" if name == "hidden" else None, help=f"{meaning} ({key})"
        )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        type=_assignment,
        help="any other value of the recipe, as in TOML; may be repeated",
    )
    add_device(parser)
    parser.add_argument("--output", type=Path, default=Path("runs/train"), help="run folder (default: %(default)s)")
    parser.add_argument(
        "--minimum-accuracy",
        type=_part,
        default=0.0,
        metavar="PART",
        help="exit with 1 if the test accuracy, from 0 to 1, is lower",
    )
    parser.add_argument("--plots", action="store_true", help=f"also draw gradients and confused classes, {RUN_PLOT}")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the run folder")


def _part(text: str) -> float:
    try:
        part = float(text)
    except ValueError:
        part = math.nan
    if not 0 <= part <= 1:
        raise argparse.ArgumentTypeError(f"must be a part of 1, such as 0.9 for 90 %, got {text!r}")
    return part


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"must be TABLE.KEY=VALUE, such as schedule.epochs=3, got {text!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value  # text needs no quotes


def _train(options: argparse.Namespace) -> int:
    """Trains or resumes a run, and returns the exit code: 1 for an accuracy below the wanted one, 130 after Ctrl-C."""
    for package in ("tqdm", "matplotlib"):
        importlib.import_module(package)  # rather now than after the last epoch
    with training.together(chosen_device(options.device)) as device:
        folder: Path = options.output
        run = _resume(options, folder, device) if options.resume else _start(options, folder, device)
        first = training.processes().rank == 0
        if first:
            _introduce(run)
        try:
            training.train(run, folder)
        except KeyboardInterrupt:
            if first:
                saved = len(training.load_checkpoint(folder / CHECKPOINT).history)
                print(
                    f"\nInterrupted after epoch {saved} of {run.recipe.schedule.epochs}, which is saved. "
                    f"Go on with: srm-triton train --output {shlex.quote(str(folder))} --resume",
                    file=sys.stderr,
                )
            return INTERRUPTED
        result = run.test()
        if first:
            _report(run, result, folder, plots=options.plots)
    if result.test_accuracy < options.minimum_accuracy:
        if first:
            print(
                f"srm-triton: the test accuracy {result.test_accuracy:.2%} is below {options.minimum_accuracy:.2%}",
                file=sys.stderr,
            )
        return 1
    return 0


def _introduce(run: training.TrainingRun) -> None:
    recipe, data = run.recipe, run.data
    network, held_out = recipe.network, recipe.schedule.hold_out
    backend = resolve_backend(run.device, requested_backend(), has_native=True)
    processes = training.processes().number
    print(
        f"{recipe.note}{recipe.note and chr(10)}"
        f"{recipe.data.name}: {len(run.train_samples)} training{f', {held_out} held-out' if held_out else ''} and "
        f"{len(data.test)} test samples of {'×'.join(map(str, data.shape))} in {data.classes} classes\n"
        f"network {network.notation or 'without hidden layers'}, T = {network.steps}, {network.gradient} gradient, "
        f"read-out {network.readout}; {recipe.loss.name}; {recipe.schedule.epochs} epochs, seed {recipe.seed}\n"
        f"backend {backend} on {run.device}{f', {processes} processes' if processes > 1 else ''}",
        flush=True,
    )


def _report(run: training.TrainingRun, result: training.Result, folder: Path, *, plots: bool) -> None:
    from srm_triton.plots import plot_learning, plot_run, plot_sample

    held_out = run.recipe.schedule.hold_out
    training.save_metrics(run, result, folder / METRICS)
    plot_learning(run.history, folder / LEARNING_PLOT, evaluated="held-out" if held_out else "test")
    plot_sample(run.network, *run.sample(), folder / SAMPLE_PLOT)
    if plots:
        plot_run(run.report(), *run.predictions(), folder / RUN_PLOT)
    chosen = f"chosen on {held_out} held-out samples" if held_out else "the last; nothing was chosen by it"
    print(f"test accuracy {result.test_accuracy:.2%} after epoch {result.epoch}, {chosen}; {run.seconds:.1f} s")
    for name in RUN_FILES if plots else RUN_FILES[:-1]:
        print(f"  {folder / name}")


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line sets, by table and key."""
    given = {name: getattr(options, name) for name in FLAGS if getattr(options, name) is not None}
    if "hidden" in given:
        if "network" in given:
            raise ValueError("--hidden and --network exclude each other")
        given["hidden"] = "-".join(map(str, given["hidden"]))
    return {**{FLAGS[name][0]: value for name, value in given.items()}, **dict(options.set)}


def _start(options: argparse.Namespace, folder: Path, device: torch.device) -> training.TrainingRun:
    changes = _changes(options)
    names = training.built_in_recipes()
    source = options.recipe or (options.data if options.data in names else "digits")
    recipe = training.load_recipe(source, changes)
    first = training.processes().rank == 0
    present = _files(folder, overwrite=options.overwrite) if first else []
    try:
        run = training.TrainingRun.start(recipe, training.load_data(recipe), device)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from error
    if first:
        for name in present:
            (folder / name).unlink()
        folder.mkdir(parents=True, exist_ok=True)
    return run


def _files(folder: Path, *, overwrite: bool) -> list[str]:
    """The files of an earlier run, which may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: is a file; choose a folder")
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = set(present) - {*RUN_FILES, *(partial(Path(name)).name for name in RUN_FILES)}
    if foreign:
        raise ValueError(f"--output {folder}: holds {min(foreign)}, which is no part of a run; choose another folder")
    if present and not overwrite:
        raise ValueError(f"--output {folder}: holds a run; add --resume to go on with it or --overwrite to replace it")
    return present


def _resume(options: argparse.Namespace, folder: Path, device: torch.device) -> training.TrainingRun:
    if options.overwrite or options.recipe:
        raise ValueError(f"--resume and {'--overwrite' if options.overwrite else '--recipe'} exclude each other")
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"--output {folder}: holds no {CHECKPOINT} to go on from; leave out --resume to start a run")
    checkpoint = training.load_checkpoint(path)
    recipe = checkpoint.recipe
    for key, value in _changes(options).items():
        changed = training.change_recipe(recipe, {key: value})
        if key not in CHANGEABLE and changed != recipe:
            raise CheckpointError(
                f"{path}: its run has another {key} than the command line says, {value}; leave the option out to go "
                "on, or choose another --output"
            )
        recipe = changed
    if recipe.schedule.epochs < len(checkpoint.history):
        raise CheckpointError(
            f"{path}: its run has done {len(checkpoint.history)} epochs; schedule.epochs must be as many or more, got "
            f"{recipe.schedule.epochs}"
        )
    return training.TrainingRun.resume(checkpoint._replace(recipe=recipe), training.load_data(recipe), device)
