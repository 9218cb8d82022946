"""The benchmarks run, at sizes that measure nothing, and docs/performance.md is what the stored run gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def test_every_benchmark_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")  # holds no compiler: torch.compile takes long and must be skipped
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # the run sets it
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark measures nothing beside xdist
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that each case runs once
    try:
        # in this process, which has imported most of it already
        once = ["--benchmark-max-time=0", "--benchmark-min-rounds=1", "-p", "no:xdist"]
        code = pytest.main(["bench", "--ignore=bench/network.py", "--tiny", *once, "--report", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert code == 0, printed[-4000:]

    run = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(run) == {"machine", "versions", "date", "command", "about", "results"}
    both, alone = {"reference", "triton"}, {"scikit-image"}
    expected = {"srm_scan": both, "batch_norm": both, "affine": both, "sparse_code": both, "denoise": alone}
    expected |= {"regression": {"scikit-learn"}, "sparse_linear": {"torch.sparse", "dense"}}
    for operation, contenders in expected.items():
        assert f"## {operation}" in printed
        assert (tmp_path / f"{operation}.png").stat().st_size > 10_000
        cases = [case["contenders"] for case in run["results"] if case["operation"] == operation]
        assert contenders < {name for case in cases for name in case}
        for name, record in (item for case in cases for item in case.items()):
            if "skipped" in record:
                assert name not in ("reference", "published loop"), record
                assert f"**{name}**: skipped, {record['skipped']}" in printed
            else:
                assert 0 < record["quartiles"][0] <= record["nanoseconds"] <= record["quartiles"][1]
                assert record["ratio"] > 0
    assert "torch.compile**: skipped, needs a C++ compiler" in printed

    cases = {(case["operation"], case["case"]): case["contenders"] for case in run["results"]}
    scan = cases["srm_scan", "forward and backward"]
    assert scan["reference"]["kept_bytes"] == 4.5  # in float32: the current and, for 64 elements, 8 constants
    assert scan["published loop"]["kept_bytes"] == 12


def test_page_is_made_of_the_stored_runs(tmp_path):
    stored = [path for kind in ("*cores", "networks*", "gather*") for path in ROOT.glob(f"bench/results/{kind}.json")]
    assert len(stored) == 3
    page = tmp_path / "performance.md"
    command = [sys.executable, "-m", "bench.report", *(path.relative_to(ROOT) for path in stored), "--page", page]
    subprocess.run(command, cwd=ROOT, check=True)
    assert page.read_text(encoding="utf-8") == (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
