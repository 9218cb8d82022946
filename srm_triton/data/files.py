"""Data files: their content, plain or in an archive, and what is said where it is something else."""

import gzip
import importlib
import zlib
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """A data file holds something else than it should; the message names file, expectation and finding."""


def find_file(path: Path) -> Path | None:
    """Returns `path`, or the same with the ending ``.gz``, whichever is a file."""
    candidates = (path, path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def read_bytes(path: Path) -> bytes:
    """Reads a file; one whose name ends in ``.gz`` is unpacked.

    Raises:
        OSError: if the file cannot be read.
        DataError: for a damaged archive.
    """
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: expected a complete gzip archive, found a damaged one ({error})") from error


def optional_module(name: str, extra: str) -> Any:
    """Imports a package that an extra of this one brings along.

    Raises:
        ModuleNotFoundError: without it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        message = f"the package {name} is missing; install it by: pip install 'srm-triton[{extra}]'"
        raise ModuleNotFoundError(message, name=name) from error
