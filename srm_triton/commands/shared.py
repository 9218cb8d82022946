"""What several commands share: options, the device, a progress bar, and the exit code after Ctrl-C."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import torch

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
INTERRUPTED = 130  # what shells report for a command that Ctrl-C ended


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--device`, whose value `chosen_device` takes."""
    parser.add_argument(
        "--device", default="auto", metavar="auto|cpu|cuda|cuda:N", help="default: a GPU if there is one"
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--cache`, the path of a tuning file."""
    parser.add_argument("--cache", type=Path, help="tuning file (default: ~/.cache/srm-triton/tuning.json)")


def chosen_device(name: str) -> torch.device:
    """Returns the device that `--device` names.

    Raises:
        ValueError: for another name, or a GPU that this machine does not have.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    gpus = [f"cuda:{number}" for number in range(count)]
    if name not in (allowed := ("auto", "cpu", *(("cuda", *gpus) if count else ()))):
        missing = "" if count else ": this machine has no GPU that PyTorch can use"
        raise ValueError(f"--device {name}{missing}; allowed here: {', '.join(allowed)}")
    return torch.device(name)


def kernels_state(packages: list[str]) -> str:
    """Returns in words how the Triton kernels run here; "compiled" where a GPU runs them."""
    if "triton missing" in packages:
        return "Triton is not installed"
    from srm_triton.kernels import launch

    if launch.interpreted():
        return "interpreted, on tensors of the CPU"
    return "compiled" if torch.cuda.is_available() else "unused, for want of a GPU"


@contextlib.contextmanager
def progress(total: int | None, unit: str) -> Iterator[tuple[Callable[[], object], Callable[[str], object]]]:
    """What advances a progress bar and what prints a line above it; without tqdm there is no bar."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda: None, print
        return
    with tqdm(total=total, unit=unit, disable=None) as bar:
        yield bar.update, bar.write
