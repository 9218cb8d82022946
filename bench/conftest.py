"""pytest's side: options, fixtures, and the report at the end of a run."""

import os
import platform
import warnings
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import cpuinfo
import pytest
import torch

from bench import harness, report

PACKAGES = ("srm-triton", "torch", "triton", "spikingjelly", "snntorch", "norse", "sinabs")
RUN = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--report", type=Path, default=Path("runs/bench"), help="folder of results.json and plots")
    parser.addoption("--tiny", action="store_true", help="cut every axis to 4, to check that the benchmarks run")


def pytest_configure(config):
    installed = {package.name.lower(): package.version for package in metadata.distributions()}
    config.stash[RUN] = {
        "machine": {
            "processor": cpuinfo.get_cpu_info()["brand_raw"],
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {"python": platform.python_version()}
        | {name: installed[name] for name in PACKAGES if name in installed},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python -m pytest", *map(str, config.invocation_params.args)]),
        "about": {},
        "results": [],
    }


@pytest.hookimpl(trylast=True)  # so that runs of a case with one thread and with more follow each other
def pytest_generate_tests(metafunc):
    """Measures with each number of PyTorch's threads where a test asks for `threads`."""
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", [1] if harness.DEVICE.type == "cuda" else sorted({1, torch.get_num_threads()}))


def pytest_benchmark_group_stats():
    """Replaces pytest-benchmark's own table, which would show the time of whole rounds."""
    return []


@pytest.fixture(scope="session", autouse=True)
def inductor_cache(tmp_path_factory):
    """An empty one, so that the first call of a compiled function shows how long compilation takes."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))


@pytest.fixture
def shrink(request):
    """The sizes to run with."""
    if request.config.getoption("tiny"):
        return lambda shape: {axis: min(length, 4) for axis, length in shape.items()}
    return lambda shape: shape


@pytest.fixture
def measure(request, benchmark):
    """`harness.measure` for a named case; its records go into the report."""
    torch.manual_seed(0)
    run = request.config.stash[RUN]
    operation = request.module.__name__.rpartition(".")[2]
    threads_before = torch.get_num_threads()

    def measure(case, shape, contenders, tensors, *, threads=1, **options):
        torch.set_num_threads(threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other libraries use what PyTorch deprecates
            records = harness.measure(benchmark, contenders, tensors, **options)
        what = {"operation": operation, "case": case, "shape": shape, "threads": threads}
        run["results"].append(what | {"contenders": records})
        run["about"] |= {contender.name: contender.about for contender in contenders if contender.about}

    yield measure
    torch.set_num_threads(threads_before)


def pytest_terminal_summary(terminalreporter, config):
    run, folder = config.stash[RUN], config.getoption("report")
    if run["results"]:
        report.write(run, folder)
        terminalreporter.write_line("")
        terminalreporter.write(report.text(run))
        terminalreporter.write_line(f"Results and plots are in {folder}.")
