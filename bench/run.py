"""Runs benchmarks without pytest, which a bare machine may lack: `python -m bench.run srm_scan network.test_network`.

After each case the results so far are stored, so that a run that is ended has them.
"""

import argparse
import contextlib
import importlib
import inspect
import itertools
import json
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench import harness, report
from srm_triton import tuning

PACKAGES = ("srm-triton", "torch", "triton", "spikingjelly", "snntorch", "norse", "sinabs")
Benchmark = Callable[[Callable[[], None]], None]
Measure = Callable[..., None]


def describe(command: str) -> report.Run:
    """A run without results yet: where it is made and how."""
    installed = {package.name.lower(): package.version for package in metadata.distributions()}
    return {
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version()}
        | {name: installed[name] for name in PACKAGES if name in installed},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command,
        "about": {},
        "results": [],
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def recorder(run: report.Run, operation: str, benchmark: Benchmark, without: Collection[str] = ()) -> Measure:
    """`harness.measure` for a named case; its records go into the run."""

    def measure(case, shape, contenders, tensors, *, threads=1, **options):
        contenders = [contender for contender in contenders if contender.name not in without]
        with _threads(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other libraries use what PyTorch deprecates
            records = harness.measure(benchmark, contenders, tensors, **options)
        what = {"operation": operation, "case": case, "shape": shape, "threads": threads}
        run["results"].append(what | {"contenders": records})
        run["about"] |= {contender.name: contender.about for contender in contenders if contender.about}

    return measure


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shrinker(tiny: bool) -> Callable[[dict[str, int]], dict[str, int]]:
    """What makes of sizes those to run with."""
    return lambda shape: {axis: min(length, 4) if tiny else length for axis, length in shape.items()}


def numbers_of_threads() -> list[int]:
    """What to measure with each of, where a benchmark asks for it."""
    return [1] if harness.DEVICE.type == "cuda" else sorted({1, torch.get_num_threads()})


def rounds(seconds: float, at_least: int) -> Benchmark:
    """Repeats work for so long and so often."""

    def benchmark(work: Callable[[], None]) -> None:
        end = time.perf_counter() + seconds
        for number in itertools.count():
            if number >= at_least and time.perf_counter() >= end:
                return
            work()

    return benchmark


def cases(names: list[str]) -> Iterator[tuple[str, Callable[..., None], dict[str, Any]]]:
    """Operation, function and arguments of each case of modules, or functions of modules, of this package."""
    for name in names:
        operation, _, only = name.partition(".")
        module = importlib.import_module(f"bench.{operation}")
        chosen = [only] if only else [name for name in vars(module) if name.startswith("test_")]
        for function in (getattr(module, name) for name in chosen):
            keys, values = getattr(function, "cases", ("", [()]))
            keys = keys.split(", ") if keys else []
            for value in values:
                arguments = dict(zip(keys, value if len(keys) != 1 else (value,), strict=True))
                takes_threads = "threads" in inspect.signature(function).parameters
                for threads in numbers_of_threads() if takes_threads else [None]:
                    yield operation, function, arguments | ({"threads": threads} if takes_threads else {})


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks and returns the exit code: 1 if one failed or there was no time for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", help="MODULE or MODULE.FUNCTION of bench/")
    parser.add_argument("--report", type=Path, default=Path("runs/bench"), help="folder of results.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="refuse to measure on another one")
    parser.add_argument("--tiny", action="store_true", help="cut every axis to 4, to check that the benchmarks run")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="at least, for each case (default: %(default)s)")
    parser.add_argument("--until", type=float, default=float("inf"), help="start no case after so many seconds")
    parser.add_argument("--without", action="append", default=[], help="leave a contender out; may be repeated")
    parser.add_argument("--tuning", type=Path, help="tuning file to run with")
    parser.add_argument("--tune", action="store_true", help="fill that file for the cases, instead of measuring them")
    options = parser.parse_args(arguments)
    if options.device not in (None, harness.DEVICE.type):
        parser.error(f"--device {options.device}: PyTorch {torch.__version__} would use {harness.DEVICE.type} here")
    print(torch.cuda.get_device_name() if harness.DEVICE.type == "cuda" else "the CPU", flush=True)
    run = describe(f"python -m bench.run {' '.join(sys.argv[1:] if arguments is None else arguments)}")
    if options.tune:
        trials = tuning.tune(path=options.tuning, again=True)
        failures = _each_case(options, lambda operation: _prepare)
        tuning.tune(False)
        tried = {case: [_trial(*trial) for trial in of_case] for case, of_case in trials.items()}
        (options.report / "trials.json").write_text(json.dumps(tried, indent=1) + "\n", encoding="utf-8")
    else:
        if options.tuning:
            tuning.load(options.tuning)
        benchmark = rounds(options.seconds, options.rounds)
        report.write(run, options.report)
        failures = _each_case(
            options,
            lambda operation: recorder(run, operation, benchmark, options.without),
            lambda: report.write(run, options.report),
        )
    for failure in failures:
        print(failure)
    return 1 if failures else 0


def _trial(configuration: Any, milliseconds: float, failure: str | None) -> dict[str, Any]:
    return configuration._asdict() | ({"failure": failure} if failure else {"milliseconds": milliseconds})


def _prepare(case: str, shape: Any, contenders: Any, tensors: Any, **options: Any) -> None:
    harness.prepare(contenders, tensors, backward=options.get("backward", True))


def _each_case(
    options: argparse.Namespace, measure: Callable[[str], Measure], after: Callable[[], object] = lambda: None
) -> list[str]:
    """Goes through the cases and returns what failed."""
    options.report.mkdir(parents=True, exist_ok=True)
    end, failures = time.perf_counter() + options.until, []
    for operation, function, values in cases(options.benchmarks):
        name = f"{operation}.{function.__name__} {values or ''}".strip()
        if time.perf_counter() >= end:
            failures.append(f"{name}: left out, for want of time")
            continue
        torch.manual_seed(0)
        given = values | {"measure": measure(operation), "shrink": shrinker(options.tiny)}
        wanted = inspect.signature(function).parameters
        start = time.perf_counter()
        try:
            function(**{key: value for key, value in given.items() if key in wanted})
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
        except Exception as error:  # compilers and drivers name no set of exceptions
            traceback.print_exc()
            failures.append(f"{name}: {type(error).__name__}: {error}")
        after()
    return failures


if __name__ == "__main__":
    sys.exit(main())
