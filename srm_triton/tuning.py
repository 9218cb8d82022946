"""Tuning on a GPU: times the kernels' configurations and keeps the fastest in a file (`srm-triton tune`).

The choice at a launch stands in `srm_triton/kernels/configurations.py`. `loaded` shows what this process uses.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srm_triton.files import write_atomically
from srm_triton.kernels import configurations
from srm_triton.kernels.configurations import FORMAT, Entries, TuningError, TuningWarning, load, loaded, read, unload

__all__ = ["Entries", "Trial", "TuningError", "TuningWarning", "load", "loaded", "read", "tune", "unload", "update"]

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # types to compare bits in, by the values' size


class Trial(NamedTuple):
    """A candidate's time in milliseconds, or infinity and why it cannot serve."""

    configuration: Any
    milliseconds: float
    failure: str | None = None


@contextlib.contextmanager
def tune(path: Path | None = None) -> Iterator[dict[str, list[Trial]]]:
    """Within the block, a kernel's first launch of each class of sizes times its candidates on that launch's tensors.

    One that does not compile or launch, or whose results differ from those of the usual configuration, is left out. The
    fastest serves this process from then on, and by the file every later one.

        with srm_triton.tuning.tune() as trials:
            loss(network(inputs)).backward()

    Args:
        path: the file; None stands for ``~/.cache/srm-triton/tuning.json``.

    Yields:
        What fills with each class of launches, in words, and the trials for it, of the usual configuration first.

    Raises:
        TuningError: where no GPU runs compiled kernels, within another such block, or if the file cannot be used.
        OSError: if it cannot be written.
    """
    read(path := path or configurations.default_path())
    if configurations.warp_size() is None:
        raise TuningError("tuning needs compiled kernels; TRITON_INTERPRET must be unset")
    found: dict[str, list[Trial]] = {}

    def choose(kernel: Any, case: str, candidates: Sequence[Any], launch: Any, outputs: Sequence[Tensor | None]) -> Any:
        filled = [output for output in outputs if output is not None and output.numel()]
        found[case] = list(_trials(candidates, launch, filled, kernel.tolerance))
        fastest = min(found[case], key=lambda trial: trial.milliseconds)
        update(path, {case: {**fastest.configuration._asdict(), "milliseconds": fastest.milliseconds}})
        return fastest.configuration

    with configurations.lock:
        if configurations.tuner:
            raise TuningError("kernels are being tuned already, for the whole process")
        configurations.choices.clear()
        configurations.tuner = choose
    try:
        yield found
    finally:
        configurations.tuner = None


def _trials(candidates: Sequence[Any], launch: Any, outputs: list[Tensor], tolerance: float) -> Iterator[Trial]:
    from triton.testing import do_bench

    expected: list[Tensor] = []
    for configuration in candidates:
        for output in outputs:  # what a launch leaves out shows
            output.fill_(math.nan if output.is_floating_point() else torch.iinfo(output.dtype).min)
        try:
            launch(configuration)
            expected = expected or [output.clone() for output in outputs]
            if not all(_agree(*pair, tolerance) for pair in zip(outputs, expected, strict=True)):
                raise TuningError("its results differ from those of the usual configuration")
            yield Trial(configuration, float(do_bench(partial(launch, configuration), return_mode="median")))
        except Exception as error:  # compilers and drivers name no set of exceptions
            if configuration is candidates[0]:
                raise
            yield Trial(configuration, math.inf, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def _agree(result: Tensor, expected: Tensor, tolerance: float) -> bool:
    if tolerance and result.is_floating_point():
        largest = float(expected.nan_to_num(0, 0, 0).abs().max())
        return torch.allclose(result, expected, rtol=0, atol=tolerance * largest, equal_nan=True)
    bits = _BITS[result.itemsize]
    return torch.equal(result.view(bits), expected.view(bits))


def update(path: Path, entries: Entries) -> None:
    """Adds entries to a tuning file, in place of older ones for the same; processes and threads take turns.

    Raises:
        TuningError: if the file cannot be used; it stays as it is.
        OSError: if it cannot be written.
    """
    import fcntl  # wherever Triton has wheels

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees that of a killed process
        text = json.dumps({"format": FORMAT, "entries": {**read(path), **entries}}, indent=1, ensure_ascii=False)
        write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
