"""`srm-triton tune`: times the kernels on this GPU, and shows or removes what was found."""

import argparse
from pathlib import Path
from typing import Any

import torch

from srm_triton import training, tuning
from srm_triton.checks import FLOATING
from srm_triton.commands.shared import Commands, add_cache
from srm_triton.encoders import encode_direct
from srm_triton.kernels.configurations import default_path
from srm_triton.neuron import SRMNeuron

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATING}


def add_parser(commands: Commands) -> None:
    """Adds the parser of `srm-triton tune`."""
    does = "time the kernels on this GPU and keep what is fastest"
    parser = commands.add_parser("tune", help=does, description=f"In a step of training, {does} in the tuning file.")
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
        found = tuning.tune(path=path, again=True)
        _train(options)
        for case, trials in found.items():
            print(case)
            for configuration, milliseconds, failure in trials:
                print(f"  {configuration._asdict()}: {failure or f'{milliseconds:.4f} ms'}")
    print(path)
    return 0


def _train(options: argparse.Namespace, device: str = "cuda") -> None:
    """Takes a step of training with neurons of each shape, or with the network of a checkpoint."""
    like: dict[str, Any] = {"dtype": DTYPES[options.dtype], "device": device}
    for shape in options.shape:
        current, earlier = (torch.randn(shape, requires_grad=True, **like) for _ in range(2))
        SRMNeuron(device=device)(current, earlier=earlier).backward(current)
    if options.checkpoint:
        checkpoint = training.load_checkpoint(options.checkpoint)
        recipe, shape = checkpoint.recipe, checkpoint.shape
        network = training.build_network(recipe, shape, checkpoint.classes).to(**like)
        inputs = encode_direct(torch.rand(recipe.schedule.batch_size, *shape, **like), recipe.network.steps)
        network(inputs).sum().backward()
