"""Bytes that the kernels move, counted in their machine code for sm_90: loads and stores of a loop trip times width."""

from itertools import groupby

import pytest
import torch
from test_compile import compile_kernels
from triton.runtime.interpreter import interpreter_builder

from srm_triton.kernels import batch_norm, launch, srm_scan_chunk

ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
# Tensors touched at each step; values of a state, which leave out a trace that nothing needs; accesses beside the loop:
# constants, states and their gradients, an event.
PASSES = {
    "inference": (2, 0, 4),
    "forward": (2, 3, 5),
    "with states": (2, 3, 5 + 3 + 3 + 1),
    "event": (4, 3, 7),
    "event, one path": (3, 2, 5 + 1),
    "surrogate": (3, 2, 5),
    "learns": (4, 3, 7 + 3 + 3),
}


def moved(row, accesses, name=""):
    """Bytes for an element of the program's tile."""
    return sum(width for kind, width in accesses if kind.startswith(name)) / row["elements"]


def check_scan(row, size):
    """A tensor is touched once at a step, a state once for each chunk but the first; returns the bytes of a step."""
    wide, steps, backward = max(size, 4), row["steps"], row["pass"] not in ("inference", "forward", "with states")
    chunk = srm_scan_chunk(steps, size)
    tensors, state, around = PASSES["inference" if row["pass"] == "forward" and steps <= chunk else row["pass"]]
    if row["pass"] == "with states" and steps <= chunk:
        state = 0
    kept, handed = [wide] * state, [wide] * 3 * (row["pass"] == "learns")  # the initial one, and its gradient
    loads = [width for kind, width in row["loop"] if kind == "LDG"]
    stores = [width for kind, width in row["loop"] if kind == "STG"]
    results = chunk * (tensors - 1 - backward)
    assert sorted(loads) == sorted([size] * chunk * (1 + backward) + kept * backward + handed), row
    assert sorted(stores) == sorted([size] * results + kept * (not backward) + handed), row
    assert len(row["all"]) - len(row["loop"]) == around, row
    # As written, all loads of a chunk precede its arithmetic; ptxas sinks some, none beyond the first result.
    assert [len(list(run)) for name, run in groupby(row["order"]) if name == "ld.global"][-1] >= len(loads), row
    assert [kind for kind, _ in row["loop"][-results:]] == ["STG"] * results, row
    assert row["shared"] == 0, row  # else pointers or values change threads at every step, with barriers
    # The division of float64 alone is a sequence of multiply-adds; nothing that was written apart is fused.
    assert row["written_fused"] == 0, row
    written, compiled = row["double_additions"]
    assert written <= compiled if size == 8 else row["fused"] == 0, row
    return size * tensors + wide * state * (-(-steps // chunk) - 1) / steps


def test_scan(traffic_dtype, tmp_path, pytestconfig):
    size = ITEM_SIZES[traffic_dtype]
    full = ["full"] * pytestconfig.getoption("thorough")
    bytes_of = {
        (row["pass"], row["steps"]): check_scan(row, size)
        for row in compile_kernels(tmp_path, "scan", traffic_dtype, *full)
    }
    print(bytes_of)
    event, surrogate, state = 6 * size, 5 * size, {2: 1.5, 4: 1.5, 8: 6}[size]  # bytes a neuron and step
    for steps in {steps for _, steps in bytes_of}:
        more = state * (steps > 8)
        assert bytes_of["forward", steps] + bytes_of["event", steps] <= event + more
        if ("surrogate", steps) in bytes_of:
            assert bytes_of["inference", steps] == 2 * size
            assert bytes_of["forward", steps] + bytes_of["surrogate", steps] <= surrogate + more
            assert bytes_of["forward", steps] + bytes_of["event, one path", steps] <= surrogate + more


def pytest_generate_tests(metafunc):
    if "traffic_dtype" in metafunc.fixturenames:
        thorough = metafunc.config.getoption("thorough")
        metafunc.parametrize("traffic_dtype", ITEM_SIZES if thorough else ("float32",))


def test_batch_norm(traffic_dtype, tmp_path):
    """One launch reads every tensor once; of two, the first reads every tensor once and so does the second."""
    size = ITEM_SIZES[traffic_dtype]
    rows = compile_kernels(tmp_path, "batch_norm", traffic_dtype)
    forward, backward = (2 * size, 3 * size)
    for adjacent in ("features", "samples"):
        found = [row for row in rows if row["adjacent"] == adjacent]
        whole = {row["kernel"]: row for row in found if row["samples"] == 16}
        split = {row["kernel"]: row for row in found if row["samples"] == 20000}
        # Accesses of 16 bytes are those of the matrices; statistics and parameters are a value for each column.
        assert {
            kernel: moved(row, [access for access in row["all"] if access[1] == 16]) for kernel, row in whole.items()
        } == {"batch_norm_forward_kernel": forward, "batch_norm_backward_kernel": backward}
        assert {kernel: moved(row, row["loop"]) for kernel, row in split.items()} == {
            "batch_norm_partial_kernel": size,
            "batch_norm_forward_kernel": forward,
            "batch_norm_backward_partial_kernel": 2 * size,
            "batch_norm_backward_kernel": backward,
        }


@pytest.mark.skipif(not launch.interpreted(), reason="counts what the interpreter reads")
@pytest.mark.unsanitized("counts what the interpreter reads in one run")
def test_batch_norm_reads_no_tile_twice(monkeypatch):
    x = torch.randn(60000, 3)
    addresses = range(x.data_ptr(), x.data_ptr() + x.nbytes)
    read = 0
    load = interpreter_builder.create_masked_load

    def count(pointers, mask, *arguments):
        nonlocal read
        found = pointers.data[mask.data]
        read += ((found >= addresses.start) & (found < addresses.stop)).sum()
        return load(pointers, mask, *arguments)

    monkeypatch.setattr(interpreter_builder, "create_masked_load", count)
    batch_norm.forward(x, None, None, torch.empty_like(x), torch.empty(3, 3), 1e-5, len(x), True)
    assert read == 2 * x.numel()  # once for the statistics, once to normalise


@pytest.mark.parametrize("adjacent", ["features", "samples"])
def test_batch_norm_launches_once_where_it_is_small(adjacent):
    for samples, features in ((16, 4096), (64, 1024), (512, 512), (1024, 128)):
        exponents = (size.bit_length() - 1 for size in (samples, features))
        assert batch_norm.candidates(32, torch.float32, *exponents, adjacent)[0].shares(samples) == (1, 1)
    assert batch_norm.candidates(32, torch.float32, 20, 6, adjacent)[0].shares(1 << 20) > (1, 1)
