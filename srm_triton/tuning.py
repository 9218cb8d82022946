"""Tuning on a GPU: times the kernels' configurations and keeps the fastest in a file (`tune`, `srm-triton tune`).

The choice at a launch stands in `srm_triton/kernels/configurations.py`. `loaded` shows what this process uses.
"""

import json
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srm_triton.checks import check_option
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


def tune(enabled: bool = True, *, path: Path | None = None, again: bool = False) -> dict[str, list[Trial]]:
    """Switches tuning on or off, for the whole process.

    While it is on, a kernel's first launch of a class of sizes times its candidates on that launch's tensors, unless
    the tuning file holds what was found before. One that does not compile or launch, or whose results differ from those
    of the usual configuration (for batch normalisation, by more than rounding), is left out. The fastest serves this
    process from then on, and by the file every later one.

    Some launches are not tuned. One that a CUDA graph captures takes the configuration in the file or the usual one,
    with a `TuningWarning` if there is none in the file: take a step before the capture. Under
    `torch.use_deterministic_algorithms(True)` batch normalisation keeps its usual configuration. Where the file cannot
    be written any more, a `TuningWarning` says so and what was found serves this process.

    Args:
        enabled: True from here on; False ends it, and keeps what was found.
        path: the file; None stands for ``~/.cache/srm-triton/tuning.json``.
        again: whether to time also what the file holds.

    Returns:
        What fills with each class of launches, in words, and the trials for it, of the usual configuration first.

    Raises:
        ValueError: if `enabled` is no bool.
        TuningError: where no GPU runs compiled kernels, or if the file cannot be used.
        OSError: if the file cannot be written.

    Example:
        >>> import srm_triton
        >>> if torch.cuda.is_available():
        ...     trials = srm_triton.tune(True)
    """
    found: dict[str, list[Trial]] = {}
    if not check_option("enabled", enabled, (True, False)):
        configurations.tuner = None
        return found
    if configurations.warp_size() is None:
        raise TuningError("tuning needs compiled kernels; TRITON_INTERPRET must be unset")
    file = path or configurations.default_path()
    update(file, {})
    entries = read(file)

    def choose(
        kernel: Any, case: str, candidates: Sequence[Any], known: Any, launch: Any, outputs: Sequence[Tensor | None]
    ) -> Any:
        filled = [output for output in outputs if output is not None and output.numel()]
        if known is not None and (not again or case in found):
            return known
        if _captured(filled):
            text = f"a CUDA graph captures {case}, untimed; take a step before the capture"
            warnings.warn(text + configurations.INSTEAD, TuningWarning, stacklevel=4)
            return None
        found[case] = list(_trials(candidates, launch, filled, kernel.tolerance))
        fastest = min(found[case], key=lambda trial: trial.milliseconds)
        entries[case] = {**fastest.configuration._asdict(), "milliseconds": fastest.milliseconds}
        try:
            update(file, {case: entries[case]})
        except (OSError, TuningError) as error:  # hours of training may stand behind this launch
            warnings.warn(f"{error}; what was found for {case} serves this process only", TuningWarning, stacklevel=4)
        return fastest.configuration

    with configurations.lock:
        configurations.use(entries)
        configurations.tuner = choose
    return found


def _captured(outputs: Sequence[Tensor]) -> bool:
    return any(output.is_cuda for output in outputs) and torch.cuda.is_current_stream_capturing()


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
        allowed = tolerance * torch.finfo(result.dtype).eps * float(expected.nan_to_num(0, 0, 0).abs().max())
        return torch.allclose(result, expected, rtol=0, atol=allowed, equal_nan=True)
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
