"""Files that are whole at any time."""

import os
from collections.abc import Callable
from pathlib import Path


def partial(path: Path) -> Path:
    """The temporary file of `write_atomically`; one is left behind only by a process that was killed."""
    return path.with_name(f".{path.name}.partial")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with the name of a temporary file beside `path`, which then takes its place.

    Whatever happens, `path` holds the whole of its old or of its new content.

    Args:
        path: the file to write.
        write: writes the file that it is given the name of.
    """
    temporary = partial(path)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
