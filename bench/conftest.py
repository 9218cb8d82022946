"""pytest's side: options, fixtures, and the report at the end of a run."""

import os
from pathlib import Path

import pytest
import torch

from bench import report
from bench.run import describe, numbers_of_threads, recorder, shrinker

RUN = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption("--report", type=Path, default=Path("runs/bench"), help="folder of results.json and plots")
    parser.addoption("--tiny", action="store_true", help="cut every axis to 4, to check that the benchmarks run")


def pytest_configure(config):
    config.stash[RUN] = describe(" ".join(["python -m pytest", *map(str, config.invocation_params.args)]))


@pytest.hookimpl(trylast=True)  # so that runs of a case with one thread and with more follow each other
def pytest_generate_tests(metafunc):
    """Measures with each number of PyTorch's threads where a test asks for `threads`."""
    if hasattr(metafunc.function, "cases"):
        metafunc.parametrize(*metafunc.function.cases)
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", numbers_of_threads())


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
    return shrinker(request.config.getoption("tiny"))


@pytest.fixture
def measure(request, benchmark):
    """`harness.measure` for a named case; its records go into the report."""
    torch.manual_seed(0)
    return recorder(request.config.stash[RUN], request.module.__name__.rpartition(".")[2], benchmark)


def pytest_terminal_summary(terminalreporter, config):
    run, folder = config.stash[RUN], config.getoption("report")
    if run["results"]:
        report.write(run, folder)
        report.plots(run["results"], folder)
        terminalreporter.write_line("")
        terminalreporter.write(report.text(run))
        terminalreporter.write_line(f"Results and plots are in {folder}.")
