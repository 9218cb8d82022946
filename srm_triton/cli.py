"""The command line: `srm-triton train`, `verify`, `audit`, `tune`, `denoise` and `info`."""

import argparse
import sys
from collections.abc import Sequence

import torch

from srm_triton import __version__
from srm_triton.commands import audit, denoise, info, train, tune, verify
from srm_triton.commands.shared import INTERRUPTED

EXTRAS = {**dict.fromkeys(("PIL", "matplotlib", "numpy", "sklearn", "tqdm"), "demo"), "h5py": "events"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0 for success, 1 for a difference that `verify` or `audit` found, an accuracy below the wanted one or a kernel that
    `tune` left untuned, 2 for an error, 130 after Ctrl-C.

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
        package = str(error.name).partition(".")[0]
        remedy = f"; install it by: pip install 'srm-triton[{EXTRAS[package]}]'" if package in EXTRAS else ""
        print(f"srm-triton: error: the package {package} is missing{remedy}", file=sys.stderr)
    except (OSError, ValueError, torch.OutOfMemoryError) as error:
        print(f"srm-triton: error: {error}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srm-triton", description="Spiking networks that learn from spike times.")
    parser.add_argument("--version", action="version", version=f"srm-triton {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (train, verify, audit, tune, denoise, info):
        command.add_parser(commands)
    return parser
