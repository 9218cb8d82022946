"""The C library: that it is built, that it is chosen, its threads, and what users are told without it.

Its results are compared with the reference's in test_srm_scan.py, test_shrink.py and test_poisson.py.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_srm_scan import random, run

from srm_triton import SRMLinear, SRMParameters, srm_scan, srm_trace, use_backend
from srm_triton.backend import resolve_backend
from srm_triton.kernels import native

CPU = torch.device("cpu")
needs_library = pytest.mark.skipif(native.problem() is not None, reason=f"the C library is {native.problem()}")


def test_it_is_built_where_there_is_a_compiler():
    assert native.problem() is None or not any(map(shutil.which, ("cc", "gcc", "clang")))


@needs_library
def test_it_serves_the_scan_of_cpu_tensors(monkeypatch):
    called = []
    for name in ("scan_forward", "scan_backward"):
        original = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *a, original=original, name=name: called.append(name) or original(*a))
    layer = SRMLinear(5, 3)
    layer(torch.rand(2, 4, 5)).sum().backward()
    assert called == ["scan_forward", "scan_backward"]
    with use_backend("reference"):
        spikes = layer(torch.rand(2, 4, 5))
    spikes.sum().backward()
    assert called == ["scan_forward", "scan_backward"]


def test_without_it_the_reference_serves(monkeypatch):
    monkeypatch.setattr(native, "_library", lambda: "not built: no compiler")
    assert resolve_backend(CPU, "auto", has_native=True) == "reference"
    assert srm_scan(torch.ones(1, 4)).sum() == 1
    with pytest.raises(RuntimeError, match="backend 'native' is not available: its C library is not built: no comp"):
        resolve_backend(CPU, "native", has_native=True)


def test_a_library_that_cannot_be_loaded(monkeypatch, tmp_path):
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"nonsense")
    monkeypatch.setattr(native, "_path", lambda: str(broken))
    assert native._library.__wrapped__().startswith("cannot be loaded: ")
    monkeypatch.setattr(native, "_path", lambda: None)
    assert native._library.__wrapped__().startswith("not built: ")


@needs_library
def test_a_library_of_another_version(monkeypatch):
    layout = native._layout
    for wrong in native._STRUCTURES:
        monkeypatch.setattr(native, "_layout", lambda *a, wrong=wrong: (8,) if a[1] == wrong else layout(*a))
        assert native._library.__wrapped__() == "of another version: install the package again"
    monkeypatch.undo()
    monkeypatch.setattr(
        native, "_path", lambda: str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")
    )  # which has none of the operations
    assert native._library.__wrapped__() == "of another version: install the package again"


@needs_library
def test_gpu_tensors_are_refused():
    with pytest.raises(RuntimeError, match="backend 'native' runs CPU tensors only, got tensors on cuda"):
        resolve_backend(torch.device("cuda"), "native", has_native=True)


@needs_library
@pytest.mark.parametrize(
    "shape", [(40, 9, 300), (1, 300, 700), (9000, 5, 1), (3, 7, 5000), (2, 64, 1500), (1500, 9, 2, 3)]
)
def test_every_number_of_threads_gives_the_same(shape, number_of_threads):
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(shape, generator=generator) + 0.5
    grad = torch.randn(shape, generator=generator)
    results = []
    for threads in (1, 2, 3):
        number_of_threads(threads)
        results.append(run(current, grad, backend="native", output=True))
    assert current.numel() >= native._PARALLEL_FROM
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@needs_library
def test_gradients_that_are_no_numbers_equal_the_references():
    current, grad = random(4, 20, 50, shift=0.5).float(), random(4, 20, 50, seed=1).float()
    current[0, 5, :25] = torch.nan
    grad[1, 5:, 10:] = torch.inf
    grad[2, 5:, 10:] = torch.nan
    for rule in ("event", "arctan"):
        results = [run(current, grad, backend=backend, rule=rule, output=True) for backend in ("reference", "native")]
        for expected, result in zip(*results, strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
        assert results[0][1].isnan().any() and not results[0][1].isnan().all()


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_works_on_pytorchs_own_threads():
    """A scan on two threads, after PyTorch has started its own, starts no other."""
    code = (
        "import os, torch, srm_triton\n"
        "torch.set_num_threads(2)\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = count(); current = torch.rand(64, 8, 1024) + 0.5; own = count()\n"
        "with srm_triton.use_backend('native'): srm_triton.srm_scan(current)\n"
        "print(own - before, count() - own)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["1", "0"]


@pytest.mark.parametrize("stem", native._STRUCTURES)
def test_the_source_and_its_loader_agree(stem):
    structure = native._STRUCTURES[stem]
    source = (Path(native.__file__).parent / f"{stem}.c").read_text(encoding="utf-8")
    fields = source.partition("typedef struct {")[2].partition(f"}} {structure.__name__.removeprefix('_')};")[0]
    declared = re.findall(r"\w+(?=[,;])", re.sub(r"/\*.*?\*/", "", fields, flags=re.DOTALL))
    assert declared == [name for name, _ in structure._fields_]


@needs_library
def test_long_sequences(number_of_threads):
    number_of_threads(2)
    current = torch.full((2, 20_000, 3), 0.4)
    spikes = srm_scan(current.requires_grad_())
    spikes.sum().backward()
    with use_backend("reference"):
        expected = srm_scan(current)
    assert torch.equal(spikes, expected) and spikes.sum() > 1000 and current.grad.isfinite().all()


@needs_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_value_of_half_precision(dtype):
    """As currents, and as gradients that a factor of 1.5 puts half-way between two values."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    at_threshold = torch.ones_like(values).view(-1, 1)
    parameters = SRMParameters(tau_s=1.0, sharpness=1.5)
    results = []
    for backend in ("reference", "native"):
        with use_backend(backend):
            membrane = srm_trace(values.view(-1, 1), parameters).membrane
        weight_path = run(at_threshold, values.view(-1, 1), parameters, backend, rule="arctan")[1]
        results.append((membrane, weight_path))
    for expected, result in zip(*results, strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    assert results[0][0].isfinite().sum() > 60000 and results[0][1].dtype == dtype
