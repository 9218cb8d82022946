"""The first minutes on a GPU, `make gpu`: checks, tunes, measures and profiles, and fills one folder.

It needs Python 3.11 with PyTorch and Triton, and nothing else. Every stage is a process of its own with a limit of
time, so that none that fails, crashes or hangs ends the run. The folder holds README.md with the outcomes and tables,
plots, results.json, summary.json, the tuning file, the profile, and what each stage printed.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import report

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 440  # seconds for all stages but the plots
KERNEL_TESTS = ("srm_scan", "srm_membrane", "batch_norm", "shrink", "affine")
DRY_RUN = "**A dry run on the CPU, with interpreted kernels and tiny sizes: its figures say nothing.**"
PASSED, NOT_RUN = "passed", "not run"


class Stage(NamedTuple):
    """A process: arguments of Python, its limit in seconds, and a package without which it is left out."""

    name: str
    seconds: float
    arguments: Sequence[str]
    package: str = ""


class Outcome(NamedTuple):
    """How a stage ended: "passed", "not run: …" or why it failed."""

    name: str
    outcome: str
    seconds: float
    command: str

    @property
    def failed(self) -> bool:
        """Whether it was run, or should have been, in vain."""
        missing = self.outcome.startswith(NOT_RUN) and self.outcome.endswith("is missing")
        return self.outcome != PASSED and not missing


def plan(folder: Path, *, dry_run: bool) -> list[list[Stage]]:
    """The stages; those of a group run at the same time, as nothing is measured there."""
    device, tuning = "cpu" if dry_run else "cuda", str(folder / "tuning.json")
    tiny, effort = (["--tiny"], ["--seconds=0", "--rounds=2"]) if dry_run else ([], ["--seconds=0.3", "--rounds=3"])
    tests = [f"tests/test_{name}.py" for name in (("shrink",) if dry_run else KERNEL_TESTS)]
    workers = ["-n", "4"] * (importlib.util.find_spec("xdist") is not None)  # as compiling takes longest

    def bench(name: str, seconds: float, *arguments: str) -> Stage:
        fixed = [
            "--device",
            device,
            "--report",
            str(folder / name),
            "--until",
            str(0.7 * seconds),
        ]  # as it starts slowly
        return Stage(name, seconds, ["-m", "bench.run", *arguments, *fixed, *tiny])

    def measured(name: str, seconds: float, *benchmarks: str) -> Stage:
        return bench(name, seconds, *benchmarks, *effort, "--tuning", tuning, "--without", "torch.compile")

    checks = [
        Stage("verify", 120, ["-m", "srm_triton", "verify", "--repeats", "1" if dry_run else "10"]),
        Stage("tests", 120, ["-m", "pytest", *tests, *workers, "-q", "-o", "filterwarnings=default"], "pytest"),
    ]
    tuned = ["srm_scan.test_scan", "batch_norm", "network", "affine.test_layer", "srm_scan.test_both_gradients"]
    return [
        [bench("machine", 30), Stage("info", 30, ["-m", "srm_triton", "info"])],
        checks,
        *[[bench("tune", 70, *tuned, "--tune", "--tuning", tuning)]] * (not dry_run),  # which needs a GPU's clock
        [measured("networks", 95, "network")],
        [measured("scan", 40, "srm_scan")],
        [measured("batch-norm", 25, "batch_norm")],
        [measured("layers", 25, "affine")],
        [Stage("profile", 30, ["-m", "bench.trace", "--report", str(folder / "profile"), *tiny])],
    ]


@contextlib.contextmanager
def importable() -> Iterator[Path]:
    """A folder to import the checkout from, as if it were installed: kernels/ is `srm_triton.kernels` there."""
    source = (ROOT / "srm_triton" / "__init__.py").read_text(encoding="utf-8")
    version = source.partition('__version__ = "')[2].partition('"')[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "bench").symlink_to(ROOT / "bench")
        package = folder / "srm_triton"
        package.mkdir()
        for entry in [*(ROOT / "srm_triton").iterdir(), ROOT / "kernels"]:
            (package / entry.name).symlink_to(entry)
        described = folder / f"srm_triton-{version}.dist-info"
        described.mkdir()
        text = f"Metadata-Version: 2.1\nName: srm-triton\nVersion: {version}\n"
        (described / "METADATA").write_text(text, encoding="utf-8")
        yield folder


def environment(path: Path, *, dry_run: bool) -> dict[str, str]:
    """What the processes of the stages see."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
    added = {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    return kept | added | ({"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if dry_run else {})


def run(groups: Sequence[Sequence[Stage]], folder: Path, variables: dict[str, str], budget: float) -> list[Outcome]:
    """Runs the stages within the budget of seconds; what they print goes to NAME.log. Without the first none is run."""
    end = time.monotonic() + budget
    outcomes: list[Outcome] = []
    for group in groups:
        if outcomes and outcomes[0].failed:
            outcomes += [Outcome(stage.name, f"{NOT_RUN}: {outcomes[0].name} failed", 0, "") for stage in group]
            continue
        with contextlib.ExitStack() as stack:
            started = [stack.enter_context(_start(stage, folder, variables, end)) for stage in group]
            for process in started:
                outcomes.append(outcome := process.finish())
                print(f"{outcome.name}: {outcome.outcome} ({outcome.seconds:.0f} s)", flush=True)
    return outcomes


class _Process:
    """A stage that runs, with what it started; both end with the `with` block."""

    def __init__(self, stage: Stage, folder: Path, variables: dict[str, str], limit: float) -> None:
        self.stage, self.limit, self.log = stage, limit, folder / f"{stage.name}.log"
        self.began = time.monotonic()
        with self.log.open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [sys.executable, *stage.arguments],
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> Outcome:
        with self:
            try:
                outcome = self._ended(self.process.wait(max(0, self.began + self.limit - time.monotonic())))
            except subprocess.TimeoutExpired:
                outcome = f"failed, not done after {self.limit:.0f} s"
        seconds = time.monotonic() - self.began
        return Outcome(self.stage.name, outcome, seconds, shlex.join(["python", *self.stage.arguments]))

    def _ended(self, code: int) -> str:
        if code == 0:
            return PASSED
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        return f"failed, {f'signal {-code}' if code < 0 else f'exit code {code}'}: {last:.200}"


class _NotRun(contextlib.nullcontext):
    def __init__(self, stage: Stage, reason: str) -> None:
        super().__init__(self)
        self.outcome = Outcome(stage.name, f"{NOT_RUN}: {reason}", 0, "")

    def finish(self) -> Outcome:
        return self.outcome


def _start(stage: Stage, folder: Path, variables: dict[str, str], end: float) -> _Process | _NotRun:
    if stage.package and importlib.util.find_spec(stage.package) is None:
        return _NotRun(stage, f"{stage.package} is missing")
    limit = min(stage.seconds, end - time.monotonic())
    return _Process(stage, folder, variables, limit) if limit > 0 else _NotRun(stage, "no time was left")


def gather(folder: Path, *, dry_run: bool) -> report.Run:
    """One run of those of the stages, stored as results.json."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/results.json"))]
    merged: report.Run = {**(runs[0] if runs else {}), "dry_run": dry_run, "about": {}, "command": "make gpu"}
    merged["results"] = [case for run in runs for case in run["results"]]
    for part in runs:
        merged["about"] |= part["about"]
    report.write(merged, folder)
    return merged


def page(merged: report.Run, outcomes: Sequence[Outcome], *, dry_run: bool) -> str:
    """The outcomes and the results, in Markdown."""
    gpu = merged.get("machine", {}).get("gpu")
    stages = [f"| {name} | {outcome} | {seconds:.0f} s |" for name, outcome, seconds, _ in outcomes]
    parts = [f"# {gpu or 'No GPU'}", *[DRY_RUN] * dry_run]
    parts += ["\n".join(["| stage | outcome | time |", "| --- | --- | ---: |", *stages])]
    parts += [report.text(merged)] if merged["results"] else ["Nothing was measured.\n"]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all stages and returns the exit code: 1 if one failed."""
    if sys.version_info < (3, 11):  # noqa: UP036, as nothing was installed that would have refused
        print(f"make gpu needs Python 3.11 or newer, got {sys.version.split()[0]}; choose one: make gpu PYTHON=…")
        return 2
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder to fill (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu for a dry run of all but tuning")
    parser.add_argument("--only", nargs="+", help="names of the stages to run after the first; the others are left out")
    options = parser.parse_args(arguments)
    folder, dry_run = options.output.resolve(), options.device == "cpu"
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"--output {options.output}: is not empty; move it or choose another folder")
    groups = plan(folder, dry_run=dry_run)
    names = [stage.name for group in groups for stage in group]
    chosen = {names[0], *(options.only or names)}
    if unknown := chosen - set(names):
        parser.error(f"--only {min(unknown)}: no stage; they are {', '.join(names)}")
    groups = [[stage for stage in group if stage.name in chosen] for group in groups]
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with importable() as path:
        variables = environment(path, dry_run=dry_run)
        outcomes = run(groups, folder, variables, BUDGET)
        merged = gather(folder, dry_run=dry_run)
        plots = ["-m", "bench.report", str(folder / "results.json"), "--plots", str(folder)]
        drawing = [[Stage("plots", 25, plots, "matplotlib")]] if merged["results"] else []
        outcomes += run(drawing, folder, variables, 25)
    return finish(folder, merged, outcomes, time.monotonic() - began, dry_run=dry_run)


def finish(folder: Path, merged: report.Run, outcomes: Sequence[Outcome], seconds: float, *, dry_run: bool) -> int:
    """Writes README.md and summary.json, says what failed, and returns the exit code."""
    (folder / "README.md").write_text(page(merged, outcomes, dry_run=dry_run), encoding="utf-8")
    summary: dict[str, Any] = {
        "gpu": merged.get("machine", {}).get("gpu"),
        "dry_run": dry_run,
        "seconds": round(seconds, 1),
        "stages": [outcome._asdict() | {"failed": outcome.failed} for outcome in outcomes],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    others = [outcome for outcome in outcomes if outcome.outcome != PASSED]
    print(f"\n{len(outcomes) - len(others)} of {len(outcomes)} stages passed, in {seconds:.0f} s")
    for outcome in others:
        print(f"  {outcome.name}: {outcome.outcome}")
    print(f"{'Dry run on the CPU: no figure of it says anything. ' * dry_run}All is in {folder}")
    return 1 if any(outcome.failed for outcome in others) else 0


if __name__ == "__main__":
    sys.exit(main())
