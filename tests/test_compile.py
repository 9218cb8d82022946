"""Every kernel compiles for GPUs that this machine does not have, without spilling registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def compile_kernels(cache: Path, *arguments: str) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    script = Path(__file__).parent / "compile_kernels.py"
    process = subprocess.run([sys.executable, script, *arguments], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_without_spills(target, tmp_path):
    rows = compile_kernels(tmp_path, "every_kernel", target)
    kernels = {row["kernel"] for row in rows}
    assert {"srm_scan_forward_kernel", "srm_scan_backward_kernel"} < kernels
    assert {kernel for kernel in kernels if kernel.startswith("batch_norm")}
    for row in rows:
        assert row["spills"] == 0, row
        assert row["kernel"] != "srm_scan_forward_kernel" or row["fused"] == 0, row
