"""The tuning cache: the fastest configurations of the scan's kernels, in a file for every later process.

An entry serves all shapes of its class on devices of the same name, under the same versions. Where nothing is known,
the launchers choose by themselves. Tuning changes no result: all configurations of the scan agree bit for bit.

A process reads the file when it first launches a kernel on a GPU; `load` reads it again, or another one.
"""

import contextlib
import json
import math
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from reprlib import repr  # shortens
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srm_triton.files import write_atomically

SRM_SCAN_CHUNK = 16
from srm_triton.kernels.configurations import CANDIDATES, Configuration

_FORMAT, _FORMAT_VERSION = "srm-triton tuning", 1


class TuningError(ValueError):
    """A tuning file cannot be used; the message names the file, what was found and what is allowed."""


class DamagedTuningError(TuningError):
    """A tuning file holds something else."""


class TuningWarning(UserWarning):
    """A tuning file, or a part of it, is not used; the kernels run as if it had not been tuned."""


class Case(NamedTuple):
    """What a configuration is tuned for."""

    kernel: str
    """Name of the kernel."""
    device: str
    """Name of the device."""
    dtype: str
    """Of the input current."""
    log2_steps: int
    """Logarithm of the number of steps, rounded up; all numbers that need more than one chunk are one class."""
    log2_neurons: int
    """Logarithm of the number of neurons in the batch, rounded up."""

    @classmethod
    def of(cls, kernel: str, device: torch.device, dtype: torch.dtype, steps: int, neurons: int) -> "Case":
        """The class of a shape.

        Example:
            >>> Case.of("srm_scan_forward", torch.device("cpu"), torch.float32, steps=16, neurons=64 * 1000)[2:]
            ('float32', 4, 16)
        """
        steps = min(steps, SRM_SCAN_CHUNK + 1)
        dtype_name = str(dtype).removeprefix("torch.")
        return cls(kernel, device_name(device), dtype_name, _ceil_log2(steps), _ceil_log2(neurons))


class Versions(NamedTuple):
    """What a configuration was tuned with."""

    srm_triton: str
    torch: str
    triton: str

    def __str__(self) -> str:
        return ", ".join(f"{name} {number}" for name, number in self._asdict().items())


class Entry(NamedTuple):
    """The fastest configuration of a case."""

    case: Case
    versions: Versions
    configuration: Configuration
    milliseconds: float
    """The time of a launch when it was tuned."""


class TuningCache:
    """The file of configurations; threads and processes may share it.

    A damaged or foreign file is not written over: the next change sets it aside, with the ending ``.damaged``.

    Args:
        path: the file, which need not exist; None stands for `default_path()`.

    Raises:
        TuningError: if `path` is None and there is no home folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     TuningCache(Path(folder) / "tuning.json").read()
        []
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = default_path() if path is None else path

    def read(self) -> list[Entry]:
        """Returns the entries, of all devices and versions; none where there is no file.

        Raises:
            TuningError: if the file cannot be read, or a newer srm-triton wrote it in another format.
            DamagedTuningError: if it is no complete tuning file.
        """
        try:
            if not self.path.exists():
                return []
            content = self.path.read_bytes() if self.path.is_file() else None
        except OSError as error:
            raise TuningError(f"{self.path}: cannot be read ({error.strerror})") from error
        if content is None:
            raise DamagedTuningError(f"{self.path}: not a tuning file, but a folder or a device")
        try:
            return _parse(json.loads(content))
        except TuningError as error:
            raise TuningError(f"{self.path}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise DamagedTuningError(f"{self.path}: not a tuning file, or a damaged one ({error})") from error

    def update(self, entries: Iterable[Entry]) -> None:
        """Adds entries, each in place of an older one of its case and versions.

        Raises:
            TuningError: if there is a file that cannot be read.
            OSError: if the file cannot be written.
        """
        with self._locked():
            try:
                present = self.read()
            except DamagedTuningError as error:
                aside = self.path.with_name(self.path.name + ".damaged")
                self.path.replace(aside)
                warnings.warn(f"{error}; set aside as {aside.name}", TuningWarning, stacklevel=2)
                present = []
            merged = {(entry.case, entry.versions): entry for entry in (*present, *entries)}
            _write(self.path, merged.values())

    def import_from(self, path: Path) -> list[Entry]:
        """Adds the entries of another tuning file, and returns them.

        Raises:
            TuningError: if that file does not exist, or is no tuning file.
            OSError: if the cache cannot be written.
        """
        if not path.exists():
            raise TuningError(f"{path}: no such file")
        entries = TuningCache(path).read()
        self.update(entries)
        return entries

    def export_to(self, path: Path) -> list[Entry]:
        """Writes all entries to a new file, and returns them.

        Raises:
            TuningError: if there is no entry, the cache cannot be used, or `path` exists.
            OSError: if the file cannot be written.
        """
        entries = self.read()
        if not entries:
            raise TuningError(f"{self.path}: holds no entry to export")
        if path.exists():
            raise TuningError(f"{path}: exists; choose another name")
        _write(path, entries)
        return entries

    def clear(self) -> None:
        """Removes the file, whatever it holds.

        Raises:
            OSError: if it cannot be removed.
        """
        with self._locked():
            self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other writers out; the system gives the lock of a killed process back."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(self.path.name + ".lock").open("w") as file:
            if sys.platform != "win32":  # where Triton has no wheels
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def default_path() -> Path:
    """Returns ``.cache/srm-triton/tuning.json`` in the home folder.

    Raises:
        TuningError: if there is no home folder.

    Example:
        >>> default_path().name
        'tuning.json'
    """
    try:
        return Path.home() / ".cache" / "srm-triton" / "tuning.json"
    except RuntimeError as error:
        raise TuningError(f"no place for tuning.json ({error}); give a path") from error


def current_versions() -> Versions:
    """Returns the versions in use, ``"missing"`` for a Triton that is not installed."""
    try:
        from triton import __version__ as triton_version  # its distribution has another name for ROCm
    except ImportError:
        triton_version = "missing"
    return Versions(version("srm-triton"), torch.__version__, triton_version)


@cache
def device_name(device: torch.device) -> str:
    """Returns the model of a GPU, ``"cpu"`` for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


# What the file holds: for each entry one object of these fields

_TYPES = {**Case.__annotations__, **Versions.__annotations__, **Configuration.__annotations__, "milliseconds": float}


def _write(path: Path, entries: Iterable[Entry]) -> None:
    rows = [
        {**e.case._asdict(), **e.versions._asdict(), **asdict(e.configuration), "milliseconds": e.milliseconds}
        for e in entries
    ]
    text = json.dumps({"format": _FORMAT, "version": _FORMAT_VERSION, "entries": rows}, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _parse(content: Any) -> list[Entry]:
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"its format is not {_FORMAT!r}")
    format_version = content.get("version")
    if type(format_version) is int and format_version > _FORMAT_VERSION:
        raise TuningError(
            f"written by a newer srm-triton, in format version {format_version}; {_FORMAT_VERSION} is known"
        )
    if format_version != _FORMAT_VERSION:
        raise ValueError(f"its format version is {format_version!r}, not {_FORMAT_VERSION}")
    if not isinstance(content.get("entries"), list):
        raise ValueError(f"its entries are {repr(content.get('entries'))}, not a list")
    return [_parse_entry(row) for row in content["entries"]]


def _parse_entry(row: Any) -> Entry:
    if not isinstance(row, dict) or row.keys() != _TYPES.keys():
        raise ValueError(f"an entry is {repr(row)}, without exactly the fields {', '.join(_TYPES)}")
    for name, kind in _TYPES.items():
        value = row[name]
        largest = 63 if name.startswith("log2_") else math.inf
        if type(value) is not kind or (kind is not str and not 0 <= value <= largest) or value == math.inf:
            raise ValueError(f"{name} of an entry is {repr(value)}, which is not allowed for type {kind.__name__}")
    case = Case(**{name: row[name] for name in Case._fields})
    versions = Versions(**{name: row[name] for name in Versions._fields})
    return Entry(case, versions, Configuration(row["block"], row["num_warps"]), row["milliseconds"])


# What this process uses


class Loaded(NamedTuple):
    """What a tuning file offers to this process."""

    path: Path | None
    """The file; None where there is no place for one."""
    entries: int
    """The number of its entries, of all versions."""
    configurations: dict[Case, Configuration]
    """Those of the versions in use."""
    problem: str | None
    """Why it, or a part of it, cannot be used."""


# Process-wide, like torch.backends' flags: custom ops, which look here, take no such arguments.
_loaded: Loaded | None = None
_load_lock = threading.RLock()


def inspect(path: Path | None = None) -> Loaded:
    """Reads a tuning file without using it.

    Args:
        path: the file; None stands for `default_path()`.

    Returns:
        What it holds; nothing where it does not exist, and the problem where it cannot be used.

    Example:
        >>> inspect(Path("no such file")).configurations
        {}
    """
    try:
        path = path or default_path()
        entries = TuningCache(path).read()
    except TuningError as error:
        return Loaded(path, 0, {}, str(error))
    versions = current_versions()
    usable = [entry for entry in entries if entry.versions == versions]
    configurations = {e.case: e.configuration for e in usable if e.configuration in CANDIDATES.get(e.case.kernel, ())}
    problem = None
    if len(configurations) < len(usable):
        problem = (
            f"{path}: {len(usable) - len(configurations)} of its configurations are no candidates of their kernels"
        )
    if entries and not usable:
        problem = f"{path}: tuned only for other versions ({entries[-1].versions}) than those in use ({versions})"
    return Loaded(path, len(entries), configurations, problem)


def load(path: Path | None = None) -> Loaded:
    """Reads a tuning file, for all launches of this process from now on.

    What cannot be used counts as absent and gives a `TuningWarning`.

    Args:
        path: the file; None stands for `default_path()`.
    """
    global _loaded
    with _load_lock:
        _loaded = inspect(path)
        if _loaded.problem is not None:
            warnings.warn(f"{_loaded.problem}; the usual configurations serve instead", TuningWarning, stacklevel=2)
        return _loaded


def loaded() -> Loaded | None:
    """Returns what this process uses, None if it has not read a file."""
    return _loaded


def unload() -> None:
    """Forgets what was read; the next launch on a GPU reads the default file."""
    global _loaded
    with _load_lock:
        _loaded = None


def find_configuration(kernel: str, current: Tensor, time_axis: int) -> Configuration | None:
    """Returns the configuration tuned for a launch on `current`; None if there is none, and in Triton's interpreter."""
    from srm_triton.kernels import launch

    if launch.interpreted():
        return None
    known = _loaded
    if known is None:
        with _load_lock:  # the first of several threads reads, and warns
            known = _loaded or load()
    steps = current.shape[time_axis]
    case = Case.of(kernel, current.device, current.dtype, steps, current.numel() // steps)
    return known.configurations.get(case)


def _ceil_log2(number: int) -> int:
    return (number - 1).bit_length()
