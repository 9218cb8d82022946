"""`srm-triton tune`: times the kernels on this GPU, and looks after the tuning file."""

import argparse
from pathlib import Path

import torch

from srm_triton import data, training, tuning, tuning_cache
from srm_triton.checks import FLOATING
from srm_triton.commands.shared import Commands, add_cache, kernels_state, progress
from srm_triton.kernels.configurations import CANDIDATES, Configuration
from srm_triton.tuning_cache import SRM_SCAN_CHUNK

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATING}


def add_parser(commands: Commands) -> None:
    """Adds the parser of `srm-triton tune`."""
    parser = commands.add_parser(
        "tune",
        help="time the kernels on this GPU and keep what is fastest",
        description="Times the configurations of the scan's kernels on this GPU and keeps the fastest for each class "
        "of shapes: one data type, steps up to the same power of 2 (all beyond 16 alike), and neurons in the batch. "
        "Every process uses the default tuning file; another one only after srm_triton.tuning_cache.load(path).",
    )
    parser.set_defaults(run=_tune)
    add_cache(parser)
    action = parser.add_mutually_exclusive_group(required=True)
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
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="to tune for (default: %(default)s)")


def _shape(text: str) -> tuple[int, ...]:
    lengths = tuple(int(length) if length.isdecimal() else 0 for length in text.split("x"))
    if len(lengths) < 2 or min(lengths) < 1:
        raise argparse.ArgumentTypeError(f"must be lengths ≥ 1 of [batch, time, ...], such as 64x16x1024, got {text!r}")
    return lengths


def _tune(options: argparse.Namespace) -> int:
    """Tunes or does what else was asked, and returns the exit code: 1 if a kernel was left untuned."""
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
    if kernels_state(tuning_cache.current_versions()) != "compiled":
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
    with progress(len(shapes) * sum(map(len, CANDIDATES.values())), "candidate") as (advance, write):
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
