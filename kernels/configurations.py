"""What launchers may choose, and the choice: what was tuned for a launch's class of sizes, else the usual.

A kernel's module declares its choices as a `Tunable` and launches with what `Tunable.choose` returns. The file of tuned
configurations, which `srm_triton.tuning` makes, is read once, as a process first launches a compiled kernel.
"""

import json
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

FORMAT = "srm-triton tuning 2"


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
tuner: Callable[..., Any] | None = None  # chooses, in place of the file, while kernels are tuned
_loaded: Entries | None = None


@dataclass(frozen=True)
class Tunable:
    """A kernel's choices; a configuration is a NamedTuple of ints.

    Args:
        name: of the kernel.
        sizes: a class of sizes in words, with ``{}`` for each number that `choose` is given.
        candidates: those worth timing, the usual one first, for a number of threads in a warp.
        interpreted: the one in Triton's interpreter, where a program costs the same whatever its size.
        tolerance: the largest difference between two candidates' results, as a part of the largest result; 0 for none,
            bit for bit.
    """

    name: str
    sizes: str
    candidates: Callable[[int], Sequence[Any]]
    interpreted: Any
    tolerance: float = 0.0

    def choose(
        self, tensor: torch.Tensor, sizes: tuple, launch: Callable[[Any], object], outputs: Sequence[torch.Tensor]
    ) -> Any:
        """Returns the configuration for a launch on the current device.

        Args:
            tensor: an argument, for its device and dtype.
            sizes: numbers that stand for a class of sizes.
            launch: launches with a configuration; while kernels are tuned, many times with each candidate.
            outputs: all that a launch fills, and nothing that it reads.
        """
        key = self.name, tensor.device, tensor.dtype, *sizes
        choice = choices.get(key)
        if choice is not None:
            return choice
        warp = warp_size()
        if warp is None:
            return self.interpreted
        with lock:
            if key not in choices:
                where = torch.cuda.get_device_name(tensor.device) if tensor.is_cuda else tensor.device
                dtype = str(tensor.dtype).removeprefix("torch.")
                case = f"{self.name}, {self.sizes.format(*sizes)}, {dtype} on {where}, {versions_in_words()}"
                candidates = self.candidates(warp)
                choices[key] = tuner(self, case, candidates, launch, outputs) if tuner else _tuned(case, candidates)
            return choices[key]


def _tuned(case: str, candidates: Sequence[Any]) -> Any:
    entry = (load() if _loaded is None else _loaded).get(case)
    if entry is None:
        return candidates[0]
    for candidate in candidates:
        if candidate._asdict().items() <= entry.items():
            return candidate
    _warn(f"{entry} is no candidate for {case}")
    return candidates[0]


def warp_size() -> int | None:
    """Returns the threads of a warp of the current GPU; None where there is none or Triton interprets."""
    from . import launch

    return launch.warp_size() if torch.cuda.is_available() and not launch.interpreted() else None


def versions() -> dict[str, str]:
    """Returns the versions in use of the packages that a tuned configuration depends on."""
    try:
        from triton import __version__ as triton_version  # its distribution has another name for ROCm
    except ImportError:
        triton_version = "missing"
    return {"srm_triton": version("srm-triton"), "torch": torch.__version__, "triton": triton_version}


def versions_in_words() -> str:
    """Returns how the words for a class of launches end."""
    return ", ".join(f"{name} {number}" for name, number in versions().items())


def default_path() -> Path:
    """Returns ``~/.cache/srm-triton/tuning.json``; a `TuningError` says that there is no home folder."""
    try:
        return Path.home() / ".cache" / "srm-triton" / "tuning.json"
    except RuntimeError as error:
        raise TuningError(f"no place for tuning.json ({error}); give a path") from error


def read(path: Path) -> Entries:
    """Returns the entries of a tuning file, of all devices and versions; none where there is no file.

    Raises:
        TuningError: if it cannot be read, is damaged or of another format.
    """
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
    """Reads a tuning file, for all launches of this process from now on; without one, the first launch does so.

    What cannot be used counts as absent and gives a `TuningWarning`.

    Args:
        path: the file; None stands for ``~/.cache/srm-triton/tuning.json``.
    """
    global _loaded
    with lock:
        choices.clear()
        _loaded = {}
        try:
            path = path or default_path()
            _loaded = read(path)
        except TuningError as error:
            _warn(str(error))
        if _loaded and not any(case.endswith(versions_in_words()) for case in _loaded):
            _warn(f"{path}: tuned for other versions than those here, {versions_in_words()}")
        return _loaded


def loaded() -> Entries | None:
    """Returns the entries that this process read, None if it has not read a file."""
    return _loaded


def unload() -> None:
    """Forgets what was read and tuned; the next launch on a GPU reads the default file."""
    global _loaded
    with lock:
        choices.clear()
        _loaded = None


def _warn(problem: str) -> None:
    warnings.warn(f"{problem}; the usual configurations serve instead", TuningWarning, stacklevel=3)
