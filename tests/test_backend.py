"""Which implementation runs, and that a machine without Triton can do without."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_cli import run
from triton import language as tl

import srm_triton
from srm_triton import SRMLinear, batch_norm, srm_scan, use_backend
from srm_triton.backend import requested_backend, resolve_backend
from srm_triton.kernels import batch_norm as batch_norm_kernels
from srm_triton.kernels import launch
from srm_triton.kernels import srm_scan as scan_kernels


def watched(launch: Callable[..., None], called: list[str]) -> Callable[..., None]:
    label = f"{launch.__module__.rpartition('.')[2]}.{launch.__name__}"
    return lambda *arguments: called.append(label) or launch(*arguments)


@pytest.fixture
def launches(monkeypatch) -> list[str]:
    """Names of the launchers as they are called."""
    called: list[str] = []
    for module in (scan_kernels, batch_norm_kernels):
        for name in ("forward", "backward"):
            monkeypatch.setattr(module, name, watched(getattr(module, name), called))
    return called


def test_each_backend_runs_its_own_implementation(launches, device):
    matrix = torch.rand(6, 4, device=device, requires_grad=True)
    for backend, kernels_run in (("reference", False), ("triton", True), ("auto", device.type == "cuda")):
        launches.clear()
        with use_backend(backend):
            spikes = srm_scan(matrix)
            outputs = batch_norm(matrix)
        (spikes.sum() + outputs.sum()).backward()  # the backward remembers, outside the block
        expected = ["srm_scan.forward", "batch_norm.forward", "batch_norm.backward", "srm_scan.backward"]
        assert sorted(launches) == (sorted(expected) if kernels_run else [])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_code_follows_the_override(launches):
    layer = torch.compile(SRMLinear(5, 3), fullgraph=True, backend="aot_eager")
    for backend, kernels_run in (("reference", False), ("triton", True), ("reference", False)):
        launches.clear()
        with use_backend(backend):
            layer(torch.rand(2, 4, 5)).sum().backward()
        assert bool(launches) == kernels_run


def test_overrides_nest_and_end():
    with use_backend("reference"):
        with pytest.raises(KeyError), use_backend("triton"):
            assert requested_backend() == "triton"
            raise KeyError
        assert requested_backend() == "reference"
    assert requested_backend() == "auto"


def blocks(*names: str) -> Iterator[None]:
    for name in names:
        with use_backend(name):
            yield


def test_interleaved_generators():
    """As coroutines may be."""
    first, second = blocks("reference", "reference"), blocks("triton", "native")
    seen = [(next(generator), requested_backend())[1] for generator in (first, second, first, second)]
    assert seen == ["reference", "triton", "reference", "native"]
    assert list(first) == [] and requested_backend() == "native"
    assert list(second) == [] and requested_backend() == "auto"


def in_another_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.parametrize("call", [lambda function: function(), in_another_thread])
def test_a_generator_closed_late(call):
    late, equal = blocks("reference"), blocks("reference")
    next(late)
    with use_backend("triton"):
        next(equal)
        call(late.close)
        assert requested_backend() == "reference"
        equal.close()
        assert requested_backend() == "triton"
    assert requested_backend() == "auto"
    with use_backend("reference"):
        assert requested_backend() == "reference"


def test_a_second_thread_is_told():
    errors = []

    def override() -> None:
        try:
            with use_backend("triton"):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    with use_backend("reference"):
        in_another_thread(override)
    assert errors == ["use_backend is active in another thread; it holds for the whole process"]
    override()
    assert len(errors) == 1


def test_devices():
    assert resolve_backend(torch.device("cuda"), "auto") == "triton"
    assert resolve_backend(torch.device("cpu"), "auto") == "reference"
    assert resolve_backend(torch.device("cpu"), "reference", has_native=True) == "reference"
    assert resolve_backend(torch.device("cuda"), "reference") == "reference"
    with pytest.raises(ValueError, match=r"tensors must be on a cpu or cuda \(NVIDIA or ROCm\) device, got mps"):
        resolve_backend(torch.device("mps"), "auto")


def test_a_tensor_on_another_device():
    class Elsewhere(torch.Tensor):
        device = torch.device("xla")

    with pytest.raises(ValueError, match=r"current must be on a cpu or cuda \(NVIDIA or ROCm\) device, got xla"):
        srm_scan(torch.ones(1, 2).as_subclass(Elsewhere))


def test_float64_constants_reach_kernels_whole():
    """Triton passes a run-time float as float32; the interpreter, which does not, cannot show it."""
    (value,) = launch.scalars(torch.float64, (0.1,))
    assert isinstance(value, tl.constexpr) and value.value == 0.1
    assert launch.scalars(torch.float32, (0.1,)) == (0.1,)


def test_a_clone_that_is_not_installed(tmp_path):
    shutil.copytree(Path(srm_triton.__file__).parent, tmp_path / "srm_triton")
    paths = [str(tmp_path), str(Path(torch.__file__).parents[1])]
    process = run(f"import sys; sys.path[:0] = {paths}; import srm_triton", "-S")  # with no editable installation
    assert process.stderr.splitlines()[-1] == (
        "ImportError: srm_triton is not installed, and in a clone its kernels lie elsewhere; run: "
        f"pip install --editable {tmp_path}"
    )


def test_a_machine_without_triton():
    process = run(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, srm_triton, srm_triton.compat\n"
        "layer = srm_triton.SRMLinear(3, 2)\n"
        "layer(torch.ones(1, 4, 3)).sum().backward()\n"
        "assert layer.weight.grad is not None\n"
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the kernels are not interpreted")
def test_no_warning_reaches_the_user_and_triton_on_cpu_tensors_needs_the_interpreter():
    process = run(
        "import torch, warnings; before = list(warnings.filters)\n"
        "import srm_triton\n"
        "assert warnings.filters == before, warnings.filters\n"
        "srm_triton.sparse.SparseLinear(4, 3)(torch.ones(2, 4)).sum().backward()\n"
        "with srm_triton.use_backend('triton'):\n"
        "    srm_triton.srm_scan(torch.ones(1, 2))\n",
        *("-W", "error"),
    )
    assert process.returncode == 1
    error = "RuntimeError: backend 'triton' runs CPU tensors only in Triton's interpreter: set TRITON_INTERPRET=1"
    assert process.stderr.splitlines()[-1].startswith(error)
