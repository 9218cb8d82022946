"""What launchers may choose, and the choice: what was tuned for a launch's class of sizes, else the usual.

A kernel's module declares its choices as a `Tunable` and launches with what `Tunable.choose` returns. The file of tuned
configurations, which `srm_triton.tuning` makes, is read once, as a process first launches a compiled kernel.
"""

import json
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

FORMAT = "srm-triton tuning 2"
INSTEAD = "; the usual configurations serve instead"


class TuningError(ValueError):
    """Nothing can be tuned here, or a tuning file cannot be used; the message says why and what is allowed."""


class TuningWarning(UserWarning):
    """A tuning file, or a part of it, is not used; the kernels run as if it had not been tuned."""


class Configuration(NamedTuple):
    """The elements that a program takes, a power of 2, and its warps."""

    block: int
    num_warps: int


Entries = dict[str, dict[str, float]]
"""What a tuning file holds: for a class of launches, in words, the fastest configuration and its milliseconds."""

# Process-wide, like torch.backends' flags: custom ops, whose launchers look here, take no such arguments.
lock = threading.RLock()
choices: dict[tuple, Any] = {}  # of the classes that were launched
tuner: Callable[..., Any] | None = None  # chooses what the file does not hold, while kernels are tuned
_loaded: Entries | None = None


@dataclass(frozen=True)
class Tunable:
    """A kernel's choices; a configuration is a NamedTuple of ints.

    Where a `tolerance` says that results depend on the configuration, the usual one serves under
    `torch.use_deterministic_algorithms(True)`, whatever was tuned.
    """

    name: str
    sizes: str  # a class of sizes in words, with {} for each that `choose` is given
    # worth timing, the usual one first, for the threads of a warp, the dtype and the sizes; without warps, in Triton's
    # interpreter, a program costs the same whatever its size, and the first serves
    candidates: Callable[..., Sequence[Any]]
    tolerance: float = 0.0  # between two candidates' results, in roundings of the largest; 0 demands the same bits

    def choose(
        self, tensor: torch.Tensor, sizes: tuple, launch: Callable[[Any], object], outputs: Sequence[torch.Tensor]
    ) -> Any:
        """Returns the configuration for a launch on the device of `tensor`, the current one, and a class of sizes.

        While kernels are tuned, it calls `launch` many times, with each candidate; `outputs` are all tensors that this
        fills, none of which it reads.
        """
        fixed = self.tolerance > 0 and torch.are_deterministic_algorithms_enabled()
        key = self.name, tensor.device, tensor.dtype, fixed, *sizes
        if (choice := choices.get(key)) is not None:
            return choice
        warp = warp_size()
        candidates = self.candidates(warp, tensor.dtype, *sizes)
        if fixed or warp is None:
            return candidates[0]
        with lock:
            if key not in choices:
                where = torch.cuda.get_device_name(tensor.device) if tensor.is_cuda else tensor.device
                dtype = str(tensor.dtype).removeprefix("torch.")
                case = f"{self.name}, {self.sizes.format(*sizes)}, {dtype} on {where}, {', '.join(versions())}"
                entry = (load() if _loaded is None else _loaded).get(case, {})
                known = next((each for each in candidates if each._asdict().items() <= entry.items()), None)
                if tuner is None and entry and known is None:
                    warnings.warn(f"{entry} is no candidate for {case}{INSTEAD}", TuningWarning, stacklevel=3)
                choice = tuner(self, case, candidates, known, launch, outputs) if tuner else known or candidates[0]
                if choice is None:  # now it cannot be timed, a later launch may be
                    return known or candidates[0]
                choices[key] = choice
            return choices[key]


def warp_size() -> int | None:
    """Returns the threads of a warp of the current GPU, None in Triton's interpreter; an error says that both lack."""
    from . import launch

    if launch.interpreted():
        return None
    if not torch.cuda.is_available():
        raise TuningError("kernels need a GPU that PyTorch can use; without one, a launcher is given its configuration")
    return launch.warp_size()


def versions() -> list[str]:
    """Returns the packages that a tuned configuration depends on, each with its version."""
    try:
        from triton import __version__ as triton_version  # its distribution has another name for ROCm
    except ImportError:
        triton_version = "missing"
    try:
        own_version = version("srm-triton")
    except PackageNotFoundError:  # loaded as a kernel of the Hugging Face Hub
        own_version = "missing"
    return [f"srm_triton {own_version}", f"torch {torch.__version__}", f"triton {triton_version}"]


def default_path() -> Path:
    """Returns ``~/.cache/srm-triton/tuning.json``; a `TuningError` says that there is no home folder."""
    try:
        return Path.home() / ".cache" / "srm-triton" / "tuning.json"
    except RuntimeError as error:
        raise TuningError(f"no place for tuning.json ({error}); give a path") from error


def read(path: Path) -> Entries:
    """Returns the entries of a tuning file, none where there is no file; a `TuningError` says that it is unusable."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r:.40}")
        entries: Entries = content["entries"]
        if not all(isinstance(part, dict) for part in (entries, *entries.values())):
            raise ValueError("its entries are of another type")
        return entries
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise TuningError(f"{path}: not a whole file of the format {FORMAT!r} ({error}); move or remove it") from error


def load(path: Path | None = None) -> Entries:
    """Reads a tuning file, None for the default one, for all launches of this process from now on.

    What cannot be used counts as absent and gives a `TuningWarning`. Without this, the first launch reads the default.
    """
    entries, problem, here = {}, None, ", ".join(versions())
    with lock:
        try:
            path = path or default_path()
            entries = read(path)
            if entries and not any(case.endswith(here) for case in entries):
                problem = f"{path}: tuned for other versions than those here, {here}"
        except TuningError as error:
            problem = str(error)
        use(entries)
        if problem:
            warnings.warn(problem + INSTEAD, TuningWarning, stacklevel=2)
        return entries


def use(entries: Entries | None) -> None:
    """Lets launches choose among entries; None for those of the default file, which the next launch on a GPU reads."""
    global _loaded
    with lock:
        choices.clear()
        _loaded = entries


def loaded() -> Entries | None:
    """Returns the entries that this process read, None if it has not read a file."""
    return _loaded


def unload() -> None:
    """Forgets what was read and tuned; the next launch on a GPU reads the default file."""
    use(None)
