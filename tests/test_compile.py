"""Every kernel compiles for GPUs that this machine does not have, and takes no more of them than it did."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srm_triton.kernels import SRM_SCAN_RULES

# Of a thread, the most of any variant; 0: not compiled.
REGISTERS = """
                                            sm_75  sm_80  sm_86  sm_89  sm_90 sm_100 sm_120 gfx90a gfx942 gfx950 gfx1100
srm_scan_forward_kernel float64 0 0 0 0 0 0 0 0 0 0 0
srm_scan_forward_kernel float32 0 0 0 0 0 0 0 0 0 0 0
srm_scan_forward_kernel float16 0 0 0 0 0 0 0 0 0 0 0
srm_scan_forward_kernel bfloat16 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:event float64 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:event float32 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:event float16 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:event bfloat16 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:event,learn float64 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:event,learn float32 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:event,learn float16 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:event,learn bfloat16 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:surrogate float64 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:surrogate float32 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:surrogate float16 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:surrogate bfloat16 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:surrogate,learn float64 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:surrogate,learn float32 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:surrogate,learn float16 0 0 0 0 0 0 0 0 0 0 0
srm_scan_backward_kernel:surrogate,learn bfloat16 0 0 0 0 0 0 0 0 0 0 0
batch_norm_partial_kernel          float64      0    116      0      0    118    118      0      0     65      0       0
batch_norm_partial_kernel          float32     95     95     96     96     93     96    116     58     62     62      95
batch_norm_partial_kernel          float16     72     72     72     72     72     86     96     60     62     60      97
batch_norm_partial_kernel          bfloat16    72     72     72     72     72     86     94     60     62     60      97
batch_norm_forward_kernel          float64      0     98      0      0    100    100      0      0     48      0       0
batch_norm_forward_kernel          float32     80     80     80     80     81     80     80     52     48     50      74
batch_norm_forward_kernel          float16     72     72     72     72     72     72     72     56     56     58      90
batch_norm_forward_kernel          bfloat16    72     72     72     72    126     72     72     60     73     56      90
batch_norm_backward_partial_kernel float64      0     96      0      0     80     80      0      0     54      0       0
batch_norm_backward_partial_kernel float32     95     95     96     96     79     80     84     64     60     70     102
batch_norm_backward_partial_kernel float16     96     96     96     96     93     94     94     64     66     66     116
batch_norm_backward_partial_kernel bfloat16    96     94     96     96     94     96     94     66     68     68     116
batch_norm_backward_kernel         float64      0     98      0      0     98     96      0      0     58      0       0
batch_norm_backward_kernel         float32     84     80     80     80     80     80     82     62     54     72      92
batch_norm_backward_kernel         float16     93     80     80     80     80     80     94     72     70     81      98
batch_norm_backward_kernel         bfloat16    92     80     80     80    128     80     96     71     74     81      99
shrink_forward_kernel              float64      0     32      0      0     32     32      0      0     18      0       0
shrink_forward_kernel              float32     20     22     21     21     22     22     20     10     10     10      19
shrink_forward_kernel              float16     20     29     27     27     29     28     20     10     10     10      15
shrink_forward_kernel              bfloat16    26     21     21     21     21     29     20     11     11     10      18
shrink_bregman_kernel              float64      0    205      0      0    206    206      0      0     93      0       0
shrink_bregman_kernel              float32     72     72     68     68     72     92     70     59     59     59      93
"""
TARGETS, *ROWS = (line.split() for line in REGISTERS.strip().splitlines())
USUAL = [("sm_90", "float32"), ("sm_90", "bfloat16")]  # without --every-target
DTYPES = ("float64", "float32", "float16", "bfloat16")
IN_FULL = ("sm_90", "gfx942")
FLOAT64 = ("sm_80", "sm_90", "sm_100", "gfx942")

SHARED = {
    "batch_norm_partial_kernel": 8192,
    "batch_norm_forward_kernel": 8192,
    "batch_norm_backward_partial_kernel": 8192,
    "batch_norm_backward_kernel": 32768,
}  # bytes of a program

# Accesses of less than a thread's share of a row, at most 16 bytes: of statistics and parameters, a value for each
# column.
NARROW = {
    ("batch_norm_forward_kernel", "whole"): 5,
    ("batch_norm_backward_kernel", "whole"): 6,
    ("batch_norm_partial_kernel", "parts"): 3,
    ("batch_norm_forward_kernel", "parts"): 3,
    ("batch_norm_backward_partial_kernel", "parts"): 2,
    ("batch_norm_backward_kernel", "parts"): 2,
    ("batch_norm_partial_kernel", "parts of adjacent samples"): 3,
    ("batch_norm_forward_kernel", "parts of adjacent samples"): 10,
    ("batch_norm_backward_partial_kernel", "parts of adjacent samples"): 5,
    ("batch_norm_backward_kernel", "parts of adjacent samples"): 8,
    ("shrink_bregman_kernel", "images"): 26,  # three of neighbours in a row, for each of 8 elements; the penalty
}


def compile_kernels(cache: Path, *arguments: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    script = Path(__file__).parent / "compile_kernels.py"
    process = subprocess.run([sys.executable, script, *arguments], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every_dtype = metafunc.config.getoption("every_target") or metafunc.config.getoption("thorough")
    if "any_dtype" in metafunc.fixturenames:
        metafunc.parametrize("any_dtype", DTYPES if every_dtype else ("float32", "bfloat16"))
    if "target" in metafunc.fixturenames:
        every = [(target, dtype) for dtype in DTYPES for target in TARGETS if dtype != "float64" or target in FLOAT64]
        metafunc.parametrize(("target", "dtype"), every if metafunc.config.getoption("every_target") else USUAL)


def test_contracts(target, dtype, tmp_path, pytestconfig):
    limits = {kernel: int(numbers[TARGETS.index(target)]) for kernel, name, *numbers in ROWS if name == dtype}
    registers = dict.fromkeys(limits, 0)
    every = pytestconfig.getoption("every_target")
    extent = ["full"] * (target in IN_FULL) if every else ["brief"]
    for row in compile_kernels(tmp_path, "every_kernel", target, dtype, *extent):
        kernel, kind = row["kernel"], row["kind"]
        name = kernel + kind * kind.startswith(":")
        registers[name] = max(registers[name], row["registers"])
        assert row["spills"] == 0, row
        assert row["scalar_spills"] == 0 or row["large"], row  # every masked access takes a pair of AMD's scalars there
        assert row["shared"] <= SHARED.get(kernel, 0), row
        assert row["narrow"] <= NARROW.get((kernel, kind), 0) or kind == "other" or dtype == "float64", row
        if kernel.startswith("srm_scan"):
            # a neuron a thread, in half the warps where a warp has 64; no division of float64 on NVIDIA goes without
            assert row["threads"] == 128 and row["axes"] == 1, row
            assert row["fused"] == 0 or (":" in name and dtype == "float64" and target.startswith("sm")), row
    for name, limit in limits.items():
        if not every and (name.endswith(",learn") or (name.endswith(":surrogate") and dtype != "float32")):
            continue
        assert min(limit, 1) <= registers[name] <= limit, (name, registers[name])


def test_no_needless_compilation(any_dtype, tmp_path):
    """Over 1500 shapes, layouts, constants, states and outputs; version 0.1 compiled 38 kernels."""
    counts = compile_kernels(tmp_path, "variants", any_dtype)
    print(counts)
    assert counts.keys() == {"forward", *SRM_SCAN_RULES}
    assert set(counts.values()) == {
        2 if any_dtype == "float64" else 4
    }  # chunks of 8 and 16; a trace, or learned constants
