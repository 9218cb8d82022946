"""The command line: `srm-triton train`, `verify`, `tune`, `denoise` and `info`."""

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch

from srm_triton import data, training, tuning, tuning_cache
from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.checks import FLOATING
from srm_triton.denoise import Fidelity, Method, denoise_tv, to_float
from srm_triton.files import partial
from srm_triton.kernels import SRM_SCAN_CHUNK, native
from srm_triton.kernels.configurations import CANDIDATES, Configuration
from srm_triton.training import CHECKPOINT, LEARNING_PLOT, METRICS, SAMPLE_PLOT, CheckpointError, TrainingConfig

DENOISING_WEIGHTS = {"l2": 0.15, "l1": 1.0}
INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended
DEMO_PACKAGES = ("PIL", "matplotlib", "numpy", "sklearn", "tqdm")
RUN_FILES = (CHECKPOINT, METRICS, LEARNING_PLOT, SAMPLE_PLOT)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATING}


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
    of_fashion = training.usual_config("fashion-mnist")

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
        train.add_argument("--" + name.replace("_", "-"), type=kind, help=f"{meaning} ({known})")
    train.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    train.add_argument("--output", type=Path, default=Path("runs/train"), help="run folder (default: %(default)s)")
    train.add_argument("--minimum-accuracy", type=float, default=0.0, help="exit with 1 if the test accuracy is lower")
    train.add_argument("--resume", action="store_true", help="go on from the run folder's checkpoint")
    train.add_argument("--overwrite", action="store_true", help="replace the run in the run folder")

    verify = commands.add_parser("verify", help="compare every kernel with its reference on this machine")
    verify.set_defaults(run=_verify)
    verify.add_argument(
        "--repeats",
        type=int,
        default=50,
        help="runs of each kernel, which must all give the same bits; interpreted ones run once (default: %(default)s)",
    )
    verify.add_argument("--json", action="store_true", help="print JSON instead of a table")

    cache = argparse.ArgumentParser(add_help=False)
    cache.add_argument("--cache", type=Path, help="tuning file (default: ~/.cache/srm-triton/tuning.json)")

    tune = commands.add_parser(
        "tune",
        parents=[cache],
        help="time the kernels on this GPU and keep what is fastest",
        description="Times the configurations of the scan's kernels on this GPU and keeps the fastest for each class "
        "of shapes: one data type, steps up to the same power of 2 (all beyond 16 alike), and neurons in the batch. "
        "Every process uses the default tuning file; another one only after srm_triton.tuning_cache.load(path).",
    )
    tune.set_defaults(run=_tune)
    action = tune.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--shape",
        type=_shape,
        action="append",
        help="tune for an input current [batch, time, ...], such as 64x16x1024; may be repeated",
    )
    action.add_argument("--checkpoint", type=Path, help="tune for the layers of a run of `srm-triton train`")
    action.add_argument("--list", action="store_true", help="print the entries of the tuning file")
    action.add_argument("--export", type=Path, metavar="FILE", help="write the entries to a new file")
    action.add_argument("--import", type=Path, metavar="FILE", dest="source", help="add the entries of another file")
    action.add_argument("--clear", action="store_true", help="remove the tuning file")
    tune.add_argument("--dtype", choices=DTYPES, default="float32", help="to tune for (default: %(default)s)")

    denoise = commands.add_parser(
        "denoise",
        help="remove noise from an image",
        description="Removes noise from an image by total variation; edges and opacity stay.",
    )
    denoise.set_defaults(run=_denoise)
    denoise.add_argument("input", type=Path, metavar="IN", help="an image file")
    denoise.add_argument("output", type=Path, metavar="OUT", help="the PNG file to write")
    denoise.add_argument(
        "--fidelity",
        choices=get_args(Fidelity),
        default="l2",
        help="l2 for Gaussian noise, l1 for salt and pepper (default: %(default)s)",
    )
    usual = ", ".join(f"{weight} for {fidelity}" for fidelity, weight in DENOISING_WEIGHTS.items())
    denoise.add_argument("--weight", type=float, help=f"the larger, the smoother (default: {usual})")
    denoise.add_argument("--method", choices=get_args(Method), default="adaptive", help="default: %(default)s")
    denoise.add_argument("--tolerance", type=float, help="where to stop (default: 0.01 for l2, 0.015 for l1)")
    denoise.add_argument("--max-iterations", type=int, default=500, help="at the latest (default: %(default)s)")
    denoise.add_argument("--reference", type=Path, metavar="FILE", help="the image without noise, to compare with")
    denoise.add_argument("--plot", type=Path, metavar="FILE", help="PNG file for images and trace")
    denoise.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    denoise.add_argument("--overwrite", action="store_true", help="replace files that exist")

    info = commands.add_parser("info", parents=[cache], help="show versions, devices, backends and the tuning file")
    info.set_defaults(run=_info)
    info.add_argument("--json", action="store_true", help="print JSON instead of text")
    return parser


# train


def _train(options: argparse.Namespace) -> int:
    for package in ("tqdm", "matplotlib"):
        importlib.import_module(package)  # rather now than after the last epoch
    device = _device(options.device)
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


# verify


def _verify(options: argparse.Namespace) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # Triton's own switch, read when it is first imported
    from srm_triton.verification import verify

    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU, Triton's interpreted"
    comparisons = []
    if not options.json:
        print(f"Kernels against their references, on {place}\n")
        print(f"{'kernel':8}{'operation':34}{'dtype':10}{'shape':16}{'largest error':>14}{'allowed':>10}  spikes")
    for comparison in verify(device, options.repeats):
        comparisons.append(comparison)
        if not options.json:
            spikes = {True: "identical", False: "DIFFERENT", None: "-"}[comparison.identical]
            shape = "x".join(map(str, comparison.shape))
            print(
                f"{comparison.backend:8}{comparison.operation:34}{comparison.dtype:10}{shape:16}"
                f"{comparison.error:14.1e}{comparison.tolerance:10.1e}  {spikes}"
                f"{'' if comparison.repeatable else '  NOT REPEATABLE'}{'' if comparison.passed else '  FAILED'}",
                flush=True,
            )
    failed = sum(not comparison.passed for comparison in comparisons)
    if options.json:
        rows = [{**comparison._asdict(), "passed": comparison.passed} for comparison in comparisons]
        print(json.dumps({"device": place, "failed": failed, "comparisons": rows}, indent=2))
    else:
        print(f"\n{len(comparisons)} comparisons, {failed} failed")
    return 1 if failed else 0


# tune


def _shape(text: str) -> tuple[int, ...]:
    lengths = tuple(int(length) if length.isdecimal() else 0 for length in text.split("x"))
    if len(lengths) < 2 or min(lengths) < 1:
        raise argparse.ArgumentTypeError(f"must be lengths ≥ 1 of [batch, time, ...], such as 64x16x1024, got {text!r}")
    return lengths


def _tune(options: argparse.Namespace) -> int:
    cache = tuning_cache.TuningCache(options.cache)
    if options.list:
        _print_entries(cache)
    elif options.export is not None:
        print(f"{options.export}: {len(cache.export_to(options.export))} entries exported")
    elif options.source is not None:
        entries = cache.import_from(options.source)
        usable = sum(entry.versions == tuning_cache.current_versions() for entry in entries)
        print(f"{cache.path}: {len(entries)} entries imported, {usable} of them for the versions in use")
    elif options.clear:
        cache.clear()
        print(f"{cache.path}: cleared")
    else:
        device = _gpu()
        shapes = options.shape or _layer_shapes(options.checkpoint)
        return _tune_shapes(cache, list(dict.fromkeys(shapes)), DTYPES[options.dtype], device)
    return 0


def _gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise ValueError(
            "tune: this machine has no GPU that PyTorch can use, and nothing else can time the kernels; "
            "allowed here: --list, --export, --import, --clear"
        )
    if _kernels_state(tuning_cache.current_versions()) != "compiled":
        raise ValueError("tune: the kernels are not compiled here; install triton and unset TRITON_INTERPRET")
    return torch.device("cuda", torch.cuda.current_device())


def _layer_shapes(checkpoint: Path) -> list[tuple[int, ...]]:
    """The input currents of a network's layers, in a batch of its training."""
    config = training.load_checkpoint(checkpoint).config
    size = data.IMAGE_SIZES[config.data]
    network = training.build_network(config, size, data.CLASSES).to("meta")
    images = torch.empty(config.batch_size, *size, device="meta")
    return tuning.current_shapes(network, data.encode_direct(images, config.steps))


def _tune_shapes(
    cache: tuning_cache.TuningCache, shapes: list[tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> int:
    untuned = 0
    with _progress(len(shapes) * sum(map(len, CANDIDATES.values())), "candidate") as (advance, write):
        for shape in shapes:
            for tuned in tuning.tune(shape, dtype, device, after_trial=advance):
                result = "no candidate can serve"
                if tuned.entry is None:
                    untuned += 1
                else:
                    cache.update([tuned.entry])
                    result = f"{_describe(tuned.entry.configuration)}, {tuned.entry.milliseconds:.4f} ms"
                name = f"{tuned.case.kernel} {'x'.join(map(str, shape))} {tuned.case.dtype}"
                write(f"{name}: {result}, untuned {tuned.usual_milliseconds:.4f} ms")
                for trial in tuned.trials:
                    if trial.failure is not None:
                        write(f"  left out {_describe(trial.configuration)}: {trial.failure}")
    print(cache.path)
    return 1 if untuned else 0


def _describe(configuration: Configuration) -> str:
    return f"{configuration.block} neurons in {configuration.num_warps} warps"


@contextlib.contextmanager
def _progress(total: int | None, unit: str) -> Iterator[tuple[Callable[[], object], Callable[[str], object]]]:
    """What advances a progress bar and what prints a line above it; without tqdm there is no bar."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda: None, print
        return
    with tqdm(total=total, unit=unit, disable=None) as bar:
        yield bar.update, bar.write


def _print_entries(cache: tuning_cache.TuningCache) -> None:
    entries = cache.read()
    print(f"{cache.path}: {len(entries)} entries")
    for case, versions, configuration, milliseconds in entries:
        steps = 2**case.log2_steps
        time = f"T ≤ {steps}" if steps <= SRM_SCAN_CHUNK else f"T > {SRM_SCAN_CHUNK}"
        print(
            f"{case.kernel:18} {case.device}, {case.dtype}, {time}, up to 2^{case.log2_neurons} neurons: "
            f"{_describe(configuration)}, {milliseconds:.4f} ms ({versions})"
        )


# denoise


def _denoise(options: argparse.Namespace) -> int:
    from srm_triton.images import read_image, write_png

    outputs = [path for path in (options.output, options.plot) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"--plot {options.plot}: is OUT; choose another name")
    if options.plot is not None and options.weight == 0:
        raise ValueError("--plot: with --weight 0 the image stays as it is, and there is nothing to draw")
    for path in outputs:
        if not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path}: must end with .png")
        if path.exists() and not options.overwrite:
            raise ValueError(f"{path}: exists; choose another name, or add --overwrite")
    device = _device(options.device)
    image = read_image(options.input)
    noisy = image.pixels.to(device)
    reference = None if options.reference is None else read_image(options.reference).pixels.to(device)
    with _progress(None, "iteration") as (advance, _):
        result = denoise_tv(
            noisy,
            DENOISING_WEIGHTS[options.fidelity] if options.weight is None else options.weight,
            options.fidelity,
            method=options.method,
            tolerance=options.tolerance,
            max_iterations=options.max_iterations,
            reference=reference,
            trace=True,
            after_iteration=advance,
        )
    write_png(options.output, result.image, image)
    if options.plot is not None:
        from srm_triton.plots import plot_denoising

        plot_denoising(noisy, result, options.plot)
    end = "converged" if result.converged else "stopped before the tolerance was reached"
    print(f"{int(result.iterations)} iterations, {end}")
    if reference is not None:
        before = -10 * (to_float(noisy) - to_float(reference)).double().square().mean().log10()
        after = -10 * (result.image - to_float(reference)).double().square().mean().log10()
        print(f"peak signal-to-noise ratio {before:.2f} dB before, {after:.2f} dB after")
    for path in outputs:
        print(f"  {path}")
    return 0


# info


def _info(options: argparse.Namespace) -> int:
    report = _installation(options.cache)
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    print(", ".join(f"{name} {number}" for name, number in report["versions"].items()))
    print(f"Triton kernels: {report['kernels']}")
    for device in report["devices"]:
        print(f"{device['device']} ({device['name']}): backend {device['backend']}")
        if device["note"] is not None:
            print(f"  {device['note']}")
    cache = report["tuning"]
    if cache["path"] is not None:
        print(f"tuning file {cache['path']}: {cache['entries']} entries, {cache['usable']} of them in use")
    if cache["problem"] is not None:
        print(f"  {cache['problem']}")
    return 0


def _installation(cache: Path | None) -> dict[str, Any]:
    versions = tuning_cache.current_versions()
    known = tuning_cache.inspect(cache)
    return {
        "versions": {**versions._asdict(), "python": platform.python_version()},
        "kernels": _kernels_state(versions),
        "devices": [_describe_device(device) for device in _devices()],
        "tuning": {
            "path": None if known.path is None else str(known.path),
            "entries": known.entries,
            "usable": len(known.configurations),
            "problem": known.problem,
        },
    }


def _kernels_state(versions: tuning_cache.Versions) -> str:
    if versions.triton == "missing":
        return "Triton is not installed"
    from srm_triton.kernels import launch

    if launch.interpreted():
        return "interpreted, on tensors of the CPU"
    return "compiled" if torch.cuda.is_available() else "unused, for want of a GPU"


def _devices() -> list[torch.device]:
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]


def _describe_device(device: torch.device) -> dict[str, Any]:
    note = None
    if device.type == "cpu":
        threads, problem = native.threads(), native.problem()
        note = f"the C library runs on {threads} threads" if problem is None else f"the C library is {problem}"
    return {
        "device": str(device),
        "name": platform.machine() if device.type == "cpu" else tuning_cache.device_name(device),
        "backend": resolve_backend(device, "auto", has_native=True),
        "note": note,
    }


if __name__ == "__main__":
    sys.exit(main())
