"""Every kernel compiles for GPUs that this machine does not have, and takes no more of them than it did."""

import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from occupancy import PROCESSORS, resident_warps

from srm_triton.kernels import SRM_SCAN_RULES, launch

# Of a thread, the most of any variant; 0: not compiled.
REGISTERS = """
                                            sm_75  sm_80  sm_86  sm_89  sm_90 sm_100 sm_120 gfx90a gfx942 gfx950 gfx1100
srm_scan_forward                  float64       0     64      0      0     71     64      0      0    120      0      0
srm_scan_forward                  float32      62     56     56     56     64     64     64     86    156     86     84
srm_scan_forward                  float16      58     56     56     56     64     56     56     86    155     87     85
srm_scan_forward                  bfloat16     58     56     56     56     64     56     56     86    155     87     84
srm_scan_backward:event           float64       0    168      0      0    182    160      0      0    174      0      0
srm_scan_backward:event           float32     135    139    142    142    141    140    127    181    181    181    180
srm_scan_backward:event           float16     138    138    140    140    139    128    132    192    190    190    189
srm_scan_backward:event           bfloat16    138    138    140    140    139    128    133    194    192    190    187
srm_scan_backward:event,learn     float64       0    210      0      0    201    183      0      0    203      0      0
srm_scan_backward:event,learn     float32     168    168    168    168    168    165    165    211    212    212    211
srm_scan_backward:event,learn     float16     168    168    168    168    168    160    165    207    207    207    208
srm_scan_backward:event,learn     bfloat16    168    168    168    168    168    160    165    208    208    207    208
srm_scan_backward:surrogate       float64       0    116      0      0    128    114      0      0    111      0      0
srm_scan_backward:surrogate       float32      72     78     78     78     80     80     92    130    130    130    130
srm_scan_backward:surrogate       float16      72     76     76     76     80     80     90    129    130    130    129
srm_scan_backward:surrogate       bfloat16     72     80     80     80     80     80     88    131    131    130    129
srm_scan_backward:surrogate,learn float64       0    150      0      0    164    152      0      0    167      0      0
srm_scan_backward:surrogate,learn float32     128    136    134    134    135    125    115    183    183    183    182
srm_scan_backward:surrogate,learn float16     128    142    142    142    136    131    114    183    183    183    174
srm_scan_backward:surrogate,learn bfloat16    128    136    141    141    136    133    114    184    184    183    182
batch_norm_partial                float64       0    116      0      0    118    118      0      0     66      0      0
batch_norm_partial                float32      95     95     96     96     93     96    116     58     62     62     95
batch_norm_partial                float16      72     72     72     72     72     86     96     60     62     60     97
batch_norm_partial                bfloat16     72     72     72     72     72     86     94     60     62     60     97
batch_norm_forward                float64       0     80      0      0    100     86      0      0     50      0      0
batch_norm_forward                float32      75     77     77     77     77     77     78     50     48     48     74
batch_norm_forward                float16      72     72     72     72     72     72     72     58     58     58     94
batch_norm_forward                bfloat16     72     72     72     72     72     72     72     56     56     56     90
batch_norm_backward_partial       float64       0     96      0      0     80     80      0      0     60      0      0
batch_norm_backward_partial       float32      94     95     80     80     80     78     84     62     64     63     93
batch_norm_backward_partial       float16      96     94     93     93     94     94     94     69     71     71    105
batch_norm_backward_partial       bfloat16     95     94     94     94     93     96     96     68     70     70    105
batch_norm_backward               float64       0     80      0      0     96     80      0      0     59      0      0
batch_norm_backward               float32      80     80     80     80     80     80     80     57     57     57     92
batch_norm_backward               float16      80     80     80     80     80     80     92     68     68     68     96
batch_norm_backward               bfloat16     92     80     80     80     80     80     96     71     71     74     96
shrink_forward                    float64       0     32      0      0     32     32      0      0     18      0      0
shrink_forward                    float32      20     22     21     21     22     22     20     10     10     10     19
shrink_forward                    float16      20     29     27     27     29     28     20     10     10     10     15
shrink_forward                    bfloat16     26     21     21     21     21     29     20     11     11     10     18
shrink_bregman                    float64       0    206      0      0    206    202      0      0    105      0      0
shrink_bregman                    float32      86     80     96     96     80     96     80     61     59     59    100
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
    ("shrink_bregman_kernel", "images"): 28,  # three of neighbours in a row, for each of 8 elements; penalty, weight
}


# A model of the scan in float32 beyond one chunk: bytes that a neuron and step must move (tests/test_traffic.py), its
# instructions, and the warps that a processor holds, of 64; on gfx942 of 32, which are twice as wide.
MODEL = {
    "srm_scan_forward": (8.75, {"sm_90": (36, 36), "gfx942": (35, 32)}),
    "srm_scan_backward:event": (16.75, {"sm_90": (79, 12), "gfx942": (87, 16)}),
    "srm_scan_backward:surrogate": (12.75, {"sm_90": (58, 24), "gfx942": (58, 16)}),
}
# Instructions of a lane that the processor issues in the time in which memory moves a byte: H100 SXM, 67 TFLOPS (two
# operations an instruction) and 3.35 TB/s; MI300X, 304 compute units of 64 lanes at 2.1 GHz and 5.3 TB/s.
BALANCE = {"sm_90": 67 / 2 / 3.35, "gfx942": 304 * 64 * 2.1e-3 / 5.3}


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
    if "gpu" in metafunc.fixturenames:
        every = [(gpu, dtype) for gpu in IN_FULL for dtype in DTYPES]
        metafunc.parametrize(("gpu", "element"), every if metafunc.config.getoption("every_target") else USUAL[:1])


def test_contracts(target, dtype, tmp_path, pytestconfig):
    limits = {kernel: int(numbers[TARGETS.index(target)]) for kernel, name, *numbers in ROWS if name == dtype}
    registers, models = dict.fromkeys(limits, 0), defaultdict(list)
    every = pytestconfig.getoption("every_target")
    extent = ["full"] * (target in IN_FULL) if every else ["brief"]
    for row in compile_kernels(tmp_path, "every_kernel", target, dtype, *extent):
        kernel, kind = row["kernel"], row["kind"]
        name = kernel.removesuffix("_kernel") + kind * kind.startswith(":")
        assert name in limits, f"{name} has no row in the table; on {target} it takes {row['registers']} registers"
        registers[name] = max(registers[name], row["registers"])
        resident = resident_warps(target, row["registers"], row["shared"], row["num_warps"])
        models[name].append((row["instructions"], resident))
        assert resident >= row["num_warps"], row
        assert row["spills"] == 0, row
        assert row["scalar_spills"] == 0 or row["large"], row  # every masked access takes a pair of AMD's scalars there
        assert row["shared"] <= SHARED.get(kernel, 0) * (1 + (dtype == "float64")), row
        assert row["narrow"] <= NARROW.get((kernel, kind), 0) or kind == "other" or dtype == "float64", row
        if kernel.startswith("srm_scan"):
            # a neuron a thread, in half the warps where a warp has 64; no division of float64 on NVIDIA goes without
            assert row["threads"] == 128 and row["axes"] == 1, row
            if "waves" in row:  # which LLVM expects of a part; whole programs are resident
                held = row["waves"] * PROCESSORS[target].parts
                assert resident == held // row["num_warps"] * row["num_warps"], row
            assert row["fused"] == 0 or (":" in name and dtype == "float64" and target.startswith("sm")), row
    for name, (moved, of_targets) in MODEL.items() if dtype == "float32" and target in IN_FULL else ():
        instructions, warps = min(models[name])
        print(name, instructions, warps)
        assert (math.ceil(instructions), warps) == of_targets[target], (name, instructions, warps)
        assert instructions < moved * BALANCE[target], name  # memory, not arithmetic, takes the time
    for name, limit in limits.items():
        if not every and (name.endswith(",learn") or (name.endswith(":surrogate") and dtype != "float32")):
            continue
        assert min(limit, 1) <= registers[name] <= limit, (name, registers[name])


def test_what_may_be_chosen_spills_nothing(gpu, element, tmp_path, pytestconfig):
    """All configurations of the scan and all usual tiles of batch normalisation, or those that hold most."""
    every = ["full"] * pytestconfig.getoption("every_target")
    for row in compile_kernels(tmp_path, "configured", gpu, element, *every):
        assert row["spills"] == row["scalar_spills"] == 0, row
        assert resident_warps(gpu, row["registers"], row["shared"], row["num_warps"]) >= row["num_warps"], row


@pytest.mark.parametrize("vendor", ["sm_90", "gfx942"])
def test_no_needless_compilation(any_dtype, vendor, tmp_path):
    """Over 1500 shapes, layouts, constants, states and outputs; version 0.1 compiled 38 kernels."""
    counts = compile_kernels(tmp_path, "variants", any_dtype, vendor)
    print(counts)
    kinds = "forward", *SRM_SCAN_RULES
    most = 2 if any_dtype == "float64" else 4  # chunks of 8 and 16; a trace, or learned constants
    assert [counts.pop(kind) for kind in kinds] == [most] * 5
    if vendor == "gfx942":  # as many again for launches with a tensor of 2 GB or more
        assert all(1 <= counts.pop(f"{kind}, of any size") <= most for kind in kinds)
    assert not counts


def test_a_tensor_counts_with_all_of_its_storage(monkeypatch):
    kernel, of_any_size = object(), object()
    monkeypatch.setattr(launch, "_of_any_size", {kernel: of_any_size}.get)
    below, beyond = (torch.empty(size, dtype=torch.int8, device="meta") for size in (2**31 - 1, 2**31))
    assert launch.for_sizes_of(kernel, [beyond, None, 1]) is kernel
    monkeypatch.setattr(launch, "tells_sizes_apart", lambda: True)
    assert launch.for_sizes_of(kernel, [below, None, 1]) is kernel
    assert launch.for_sizes_of(kernel, [below, None, beyond[:1]]) is of_any_size
