"""`srm-triton tune`: times the kernels on this GPU, and shows or removes what was found."""

import argparse
from pathlib import Path

import torch

from srm_triton import data, training, tuning
from srm_triton.checks import FLOATING
from srm_triton.commands.shared import Commands, add_cache
from srm_triton.kernels.configurations import default_path
from srm_triton.neuron import SRMNeuron

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATING}


def add_parser(commands: Commands) -> None:
    """Adds the parser of `srm-triton tune`."""
    what = (
        "Times what each kernel may choose in a step of training on this GPU, and keeps the fastest for its class of "
    )
    what += "sizes in the tuning file. The file may be copied; processes use the default one."
    parser = commands.add_parser("tune", help="time the kernels on this GPU and keep what is fastest", description=what)
    parser.set_defaults(run=_tune)
    add_cache(parser)
    action = parser.add_mutually_exclusive_group(required=True)
    shape_help = "tune for an input current [batch, time, ...], such as 64x16x1024; may be repeated"
    action.add_argument("--shape", type=_shape, action="append", default=[], help=shape_help)
    action.add_argument("--checkpoint", type=Path, help="tune for the network of a run of `srm-triton train`")
    action.add_argument("--list", action="store_true", help="print the entries of the tuning file")
    action.add_argument("--clear", action="store_true", help="remove the tuning file")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="to tune for (default: %(default)s)")


def _shape(text: str) -> tuple[int, ...]:
    lengths = tuple(int(length) if length.isdecimal() else 0 for length in text.split("x"))
    if len(lengths) < 2 or min(lengths) < 1:
        raise argparse.ArgumentTypeError(f"must be lengths ≥ 1 of [batch, time, ...], such as 64x16x1024, got {text!r}")
    return lengths


def _tune(options: argparse.Namespace) -> int:
    """Tunes or does what else was asked, and returns the exit code 0."""
    path = options.cache or default_path()
    if options.clear:
        path.unlink(missing_ok=True)
    elif options.list:
        for case, entry in tuning.read(path).items():
            print(f"{case}: {entry}")
    else:
        with tuning.tune(path) as found:
            for shape in options.shape:
                _train_neurons(shape, DTYPES[options.dtype])
            if options.checkpoint:
                _train_network(options.checkpoint, DTYPES[options.dtype])
        for case, trials in found.items():
            print(case)
            for configuration, milliseconds, failure in trials:
                print(f"  {configuration._asdict()}: {failure or f'{milliseconds:.4f} ms'}")
    print(path)
    return 0


def _train_neurons(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    current, earlier = (torch.randn(shape, dtype=dtype, device="cuda", requires_grad=True) for _ in range(2))
    SRMNeuron(device="cuda").scan(current, earlier, None, False).backward(current)


def _train_network(checkpoint: Path, dtype: torch.dtype) -> None:
    config = training.load_checkpoint(checkpoint).config
    size = data.IMAGE_SIZES[config.data]
    images = torch.rand(config.batch_size, *size, dtype=dtype, device="cuda")
    network = training.build_network(config, size, data.CLASSES).to("cuda", dtype)
    network(data.encode_direct(images, config.steps)).sum().backward()
