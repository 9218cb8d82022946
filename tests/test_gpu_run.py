"""`make gpu` without a GPU: stages that fail in every way, a dry run, tuning with a clock that the test invents."""

import gzip
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from triton import testing

import bench.run
from bench import affine, gpu, report, trace
from bench.gpu import Stage
from srm_triton import tuning, use_backend
from srm_triton.kernels import configurations

ROOT = Path(gpu.__file__).parents[1]
HANG = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def python(name: str, code: str, seconds: float = 20, package: str = "") -> Stage:
    return Stage(name, seconds, ["-c", code], package)


def run(groups: list[list[Stage]], folder: Path, budget: float = 60) -> dict[str, gpu.Outcome]:
    return {outcome.name: outcome for outcome in gpu.run(groups, folder, dict(os.environ), budget)}


def has_ended(log: Path) -> bool:
    """Whether the process whose number stands there ends, which may take the system a moment."""
    status = Path(f"/proc/{int(log.read_text())}/stat")
    for _ in range(200):
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_no_stage_ends_the_run(tmp_path, capsys):
    groups = [
        [python("first", "print('here')")],
        [python("wrong", "print('reason'); raise SystemExit(3)"), python("silent", "raise SystemExit(4)")],
        [python("crash", "import os; os.abort()")],
        [python("hang", HANG, 1.0)],
        [python("misses", "print('a package is missing'); raise SystemExit(1)")],
        [python("absent", "", package="no_such_package")],
        [python("last", "print('done')")],
    ]
    began = time.monotonic()
    outcomes = run(groups, tmp_path)
    assert time.monotonic() - began < 8
    assert {name: outcome.outcome for name, outcome in outcomes.items()} == {
        "first": "passed",
        "wrong": "failed, exit code 3: reason",
        "silent": "failed, exit code 4: it printed nothing",
        "crash": "failed, signal 6: it printed nothing",
        "hang": "failed, not done after 1 s",
        "misses": "failed, exit code 1: a package is missing",
        "absent": "not run: no_such_package is missing",
        "last": "passed",
    }
    assert [name for name, outcome in outcomes.items() if outcome.failed] == [
        "wrong", "silent", "crash", "hang", "misses",
    ]  # fmt: skip
    assert (tmp_path / "last.log").read_text() == "done\n"
    assert has_ended(tmp_path / "hang.log")
    assert "hang: failed, not done after 1 s (1 s)" in capsys.readouterr().out


def test_stages_of_a_group_run_at_the_same_time(tmp_path):
    meet = "import pathlib, time\npathlib.Path({!r}).touch()\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    outcomes = run([[python("one", meet.format(a, b)), python("two", meet.format(b, a))]], tmp_path)
    assert [outcome.outcome for outcome in outcomes.values()] == ["passed", "passed"]


def test_the_budget_holds_for_all(tmp_path):
    outcomes = run([[python("first", "")], [python("long", HANG)], [python("late", "")]], tmp_path, budget=1.5)
    assert outcomes["first"].outcome == "passed" and outcomes["long"].outcome.startswith("failed, not done after")
    assert outcomes["late"].outcome == "not run: no time was left" and outcomes["late"].failed
    assert sum(outcome.seconds for outcome in outcomes.values()) < 2


def test_without_a_gpu_nothing_else_is_run(tmp_path):
    outcomes = run([[python("machine", "raise SystemExit(2)")], [python("verify", "")]], tmp_path)
    assert outcomes["verify"].outcome == "not run: machine failed" and outcomes["verify"].failed


def test_an_interruption_ends_what_runs(tmp_path, monkeypatch):
    def interrupt(process: gpu._Process) -> gpu.Outcome:
        while not all((tmp_path / f"{name}.log").read_text() for name in ("one", "two")):
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu._Process, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run([[python("one", HANG), python("two", HANG)]], tmp_path)
    assert has_ended(tmp_path / "one.log") and has_ended(tmp_path / "two.log")


def test_the_checkout_is_importable_without_installation():
    """Without `site`, whose .pth files hold the editable installation; torch comes by its folder."""
    code = (
        "from importlib.metadata import version; from srm_triton.kernels import launch; import bench.gpu; "
        "print(launch.__file__, version('srm-triton'))"
    )
    with gpu.importable() as path:
        variables = gpu.environment(path, dry_run=True)
        variables["PYTHONPATH"] += os.pathsep + str(Path(torch.__file__).parents[1])
        ended = subprocess.run(
            [sys.executable, "-S", "-c", code], cwd=ROOT, env=variables, text=True, capture_output=True
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith(f"{path}/srm_triton/kernels/launch.py ")
        version = bench.run.metadata.version("srm-triton")
        assert ended.stdout.split()[1] == version and (path / f"srm_triton-{version}.dist-info").is_dir()
    assert not path.exists() and (ROOT / "kernels" / "launch.py").exists()


def test_a_gpu_compiles_and_a_dry_run_interprets(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    variables = gpu.environment(Path("folder"), dry_run=False)
    assert "TRITON_INTERPRET" not in variables and variables["PYTHONPATH"] == "folder"
    monkeypatch.setenv("PYTHONPATH", "where/torch/is")
    variables = gpu.environment(Path("folder"), dry_run=True)
    assert variables["PYTHONPATH"] == f"folder{os.pathsep}where/torch/is"
    assert variables["TRITON_INTERPRET"] == "1" and variables["CUDA_VISIBLE_DEVICES"] == ""


def test_the_plan_fits_eight_minutes(tmp_path):
    groups = gpu.plan(tmp_path, dry_run=False)
    assert sum(max(stage.seconds for stage in group) for group in groups) <= gpu.BUDGET < 8 * 60 - 25
    arguments = {stage.name: list(stage.arguments) for group in groups for stage in group}
    assert list(arguments) == [
        "machine", "info", "verify", "tests", "tune", "networks", "scan", "batch-norm", "layers", "profile",
    ]  # fmt: skip
    for name, given in arguments.items():
        if "bench.run" in given:
            assert given[given.index("--device") + 1] == "cuda" and "--tiny" not in given
            benchmarks = list(itertools.takewhile(lambda word: not word.startswith("-"), given[2:]))
            assert list(bench.run.cases(benchmarks)) or name == "machine"
    assert all((ROOT / name).is_file() for name in arguments["tests"] if name.startswith("tests/"))
    dry = [stage for group in gpu.plan(tmp_path, dry_run=True) for stage in group]
    assert "tune" not in [stage.name for stage in dry] and not any("cuda" in stage.arguments for stage in dry)


def test_a_dry_run_says_so_everywhere(tmp_path, capsys):
    assert gpu.main(["--device", "cpu", "--output", str(tmp_path / "out"), "--only", "batch-norm"]) == 0
    printed = capsys.readouterr().out
    assert "Dry run on the CPU" in printed and "batch-norm: passed" in printed
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "results.json", "summary.json", "batch_norm.png", "batch-norm.log"} <= files
    page = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert page.startswith(f"# No GPU\n\n{gpu.DRY_RUN}\n") and "| batch-norm | passed |" in page
    assert "## batch_norm" in page and "| GB/s" in page
    stored = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert stored["dry_run"] is True and len(stored["results"]) >= 4
    with pytest.raises(ValueError, match="dry run"):
        report.page({"results.json": stored})
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["dry_run"] is True and summary["gpu"] is None
    assert [stage["name"] for stage in summary["stages"]] == ["machine", "batch-norm", "plots"]
    with pytest.raises(SystemExit):  # a run is not overwritten
        gpu.main(["--device", "cpu", "--output", str(tmp_path / "out")])
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_make_gpu_fails(tmp_path, capsys):
    assert gpu.main(["--output", str(tmp_path), "--only", "scan"]) == 1
    printed = capsys.readouterr().out
    assert "machine: failed, exit code 2" in printed and "--device cuda" in printed and "Dry run" not in printed
    assert not json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["dry_run"]


def test_the_folder_of_a_gpu_names_it(tmp_path):
    """Results as the stages of a GPU would store them; one of them was ended before it had any."""
    contenders = {"triton": {"nanoseconds": 0.01, "quartiles": [0.01, 0.02], "ratio": 1.0}}
    case = {"operation": "srm_scan", "case": "forward", "shape": {"n": 1}, "threads": 1, "contenders": contenders}
    for name, results in (("machine", []), ("scan", [case]), ("layers", [case | {"operation": "affine"}])):
        part = bench.run.describe("command") | {"results": results, "about": {name: "what it is"}}
        part["machine"]["gpu"] = "NVIDIA H100"
        (tmp_path / name).mkdir()
        report.write(part, tmp_path / name)
    merged = gpu.gather(tmp_path, dry_run=False)
    assert [case["operation"] for case in merged["results"]] == ["affine", "srm_scan"]
    outcomes = [gpu.Outcome("scan", "passed", 1.0, ""), gpu.Outcome("tests", "not run: pytest is missing", 0, "")]
    assert gpu.finish(tmp_path, merged, outcomes, 2.0, dry_run=False) == 0
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# NVIDIA H100\n\n| stage") and "dry run" not in page and "NVIDIA H100. python" in page
    assert "| tests | not run: pytest is missing | 0 s |" in page and "- **scan**: what it is" in page
    assert "No GPU" not in report.page({"results.json": json.loads((tmp_path / "results.json").read_text())})
    failed = [*outcomes, gpu.Outcome("layers", "failed, signal 11: nothing", 1.0, "")]
    assert gpu.finish(tmp_path, merged, failed, 2.0, dry_run=False) == 1


def test_a_training_step_is_profiled(tmp_path):
    assert trace.main(["--tiny", "--report", str(tmp_path)]) == 0
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    names = {event.get("name", "") for event in events}
    assert any("conv2d" in name for name in names) and any("srm_scan" in name for name in names)
    text = (tmp_path / "profile.txt").read_text(encoding="utf-8")
    assert "batch 1, T = 20" in text and "srm_scan" in text and "convolution_backward" in text


def test_the_benchmarks_shapes_are_tuned(tmp_path, monkeypatch):
    """Choices are made as on a GPU, while the interpreter launches; of each class the second candidate is fastest."""
    if torch.cuda.is_available():
        pytest.skip("times are invented")
    clock: dict = {}

    def do_bench(start, return_mode: str) -> float:
        start()
        return clock.setdefault(*start.args, 2.0 - 0.5 * (len(clock) % 2))

    monkeypatch.setattr(testing, "do_bench", do_bench)
    monkeypatch.setattr(configurations, "warp_size", lambda: 32)
    path = tmp_path / "tuning.json"
    monkeypatch.setattr(affine.test_direct_encoding, "cases", ("name", ["linear"]))
    command = ["affine.test_direct_encoding", "--tiny", "--tune", "--tuning", str(path), "--report", str(tmp_path)]
    try:
        with use_backend("triton"):
            assert bench.run.main(command) == 0
        entries = tuning.read(path)
        assert entries, entries
        trials = json.loads((tmp_path / "trials.json").read_text(encoding="utf-8"))
        for case, tried in trials.items():
            fastest = min(tried, key=lambda trial: trial.get("milliseconds", 9))
            assert entries[case] == fastest and fastest["milliseconds"] in (1.5, 2.0)
    finally:
        tuning.unload()
