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
        code = pytest.main(["bench", "--tiny", *once, "--report", str(tmp_path)])
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
        records = [record for record in run["results"] if record["operation"] == operation]
        assert contenders < {record["contender"] for record in records}
        for record in records:
            if "skipped" in record:
                assert record["contender"] not in ("reference", "published loop"), record
                assert f"{record['contender']}: {record['skipped']}" in printed
            else:
                assert 0 < record["lower_quartile"] <= record["nanoseconds"] <= record["upper_quartile"]
                assert record["ratio"] > 0
    assert "torch.compile: needs a C++ compiler" in printed

    kept = {
        record["contender"]: record["kept_bytes"]
        for record in run["results"]
        if (record["operation"], record["case"]) == ("srm_scan", "forward and backward") and "kept_bytes" in record
    }
    assert kept["reference"] == 4.5  # bytes in float32: the current and, for 64 elements, 8 constants
    assert kept["published loop"] == 12


def test_page_is_made_of_the_stored_run(tmp_path):
    (stored,) = (ROOT / "bench" / "results").glob("*.json")
    page = tmp_path / "performance.md"
    command = [sys.executable, "-m", "bench.report", stored.relative_to(ROOT), page]
    subprocess.run(command, cwd=ROOT, check=True)
    assert page.read_text(encoding="utf-8") == (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
