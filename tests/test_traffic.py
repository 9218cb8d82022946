"""Bytes that the kernels move, counted in their machine code for sm_90: loads and stores of a loop trip times width."""

from itertools import groupby

import pytest
import torch
from test_compile import compile_kernels
from triton.runtime.interpreter import interpreter_builder

from srm_triton.kernels import batch_norm, launch, srm_scan

REGISTERS = {(False, False): 64, (False, True): 80, (True, False): 80, (True, True): 128}  # backward, several chunks
ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float64": 8}


def moved(row, accesses, name=""):
    """Bytes for an element of the program's tile."""
    return sum(width for kind, width in accesses if kind.startswith(name)) / row["elements"]


def scan_bytes(row, size):
    """Bytes for a neuron and step, from the trip of a whole chunk; what is masked moves nothing."""
    chunks, chunk, _ = srm_scan.split_time(row["steps"])
    state = 3 * max(size, 4) if chunks > 1 and row["pass"] != "inference" else 0
    per_step = (moved(row, row["loop"]) - state) / chunk
    assert per_step == (4 if row["pass"].startswith("backward") else 2) * size, row
    return per_step + state * (chunks - 1) / row["steps"]


@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_scan(dtype, tmp_path):
    size = ITEM_SIZES[dtype]
    rows = compile_kernels(tmp_path, "scan", dtype)
    assert {row["steps"] for row in rows} >= {16, 40}
    limits = {"float32": (24, 25.5), "bfloat16": (12, 13.5), "float64": (48, 51)}[dtype]
    for steps in {row["steps"] for row in rows}:
        passes = {row["pass"]: scan_bytes(row, size) for row in rows if row["steps"] == steps}
        assert passes["forward"] + passes["backward"] <= limits[steps > 16], (steps, passes)
        assert passes.get("inference", passes["forward"]) == 2 * size if steps <= 16 else "inference" in passes
        assert passes.get("backward with label spikes", passes["backward"]) == passes["backward"]
    for row in rows:
        assert row["spills"] == 0, row
        if dtype != "float64":  # of 65536 registers that a multiprocessor shares among its threads
            assert row["registers"] <= REGISTERS[row["pass"].startswith("backward"), row["steps"] > 16], row
        assert row["shared"] == 0, row  # else pointers or values change threads at every step, with barriers
        forward = not row["pass"].startswith("backward")
        chunk = srm_scan.split_time(row["steps"])[1]
        loads = [i for i, (kind, _) in enumerate(row["loop"]) if kind == "LDG"]
        assert sum(kind == "STG" for kind, _ in row["loop"][loads[-1] :]) == chunk * (1 if forward else 2), row
        # As written, all loads of a chunk precede its arithmetic; ptxas sinks some, none beyond the first result.
        together = {len(list(run)) for name, run in groupby(row["order"]) if name == "ld.global"}
        expected = chunk if forward else 2 * chunk + (3 if row["steps"] > 16 else 0)
        if row["pass"].endswith("label spikes"):  # their step is loaded once, before the others or with the first
            together = {expected if number == expected + 1 else number for number in together} - {1}
        assert together == {expected}, row
        values = [width for kind, width in row["loop"] if kind == "LDG"][-chunk:]
        assert set(values) == {2 * size if forward else size}, row
        # The division of float64 alone is a sequence of multiply-adds; nothing that was written apart is fused.
        assert row["written_fused"] == 0, row
        written, compiled = row["double_additions"]
        assert written == compiled if dtype == "float64" else row["fused"] == 0, row


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_batch_norm(dtype, tmp_path):
    """One launch reads every tensor once; of two, the first reads every tensor once and so does the second."""
    size = ITEM_SIZES[dtype]
    rows = compile_kernels(tmp_path, "batch_norm", dtype)
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


@pytest.mark.parametrize("neurons", [4096, 16384, 65536, 1 << 20])
@pytest.mark.parametrize("elements_per_thread", [1, 2])
def test_scan_fills_a_device(neurons, elements_per_thread, monkeypatch):
    """Nearly a program for each of 132 multiprocessors from 4096 neurons on, however the neurons are laid out."""
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    configuration = srm_scan.usual_configuration(neurons, elements_per_thread)
    for inner in (1, 64, 4096):
        tile = srm_scan.choose_tile(neurons // inner, inner, configuration)
        columns, rows = tile.grid(neurons // inner, inner)
        assert columns * rows >= 128
        assert tile.block_outer * tile.block_inner >= 32 * tile.num_warps


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
    batch_norm.forward(x, None, None, torch.empty_like(x), torch.empty(3, 3), 1e-5, len(x))
    assert read == 2 * x.numel()  # once for the statistics, once to normalise


@pytest.mark.parametrize("samples_adjacent", [False, True])
def test_batch_norm_launches_once_where_it_is_small(samples_adjacent, monkeypatch):
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    for samples, features in ((16, 4096), (64, 1024), (512, 512), (1024, 128)):
        assert batch_norm.choose_tile(samples, features, samples_adjacent, torch.float32).whole
    assert not batch_norm.choose_tile(1 << 20, 64, samples_adjacent, torch.float32).whole
