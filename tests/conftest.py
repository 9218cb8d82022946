"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before triton is first imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers of pytest-xdist fill the cores; threads would wait for them

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest_plugins = ["pytester", "sanitizer"]
collect_ignore = ["check_pages.py", "conftest.py"]  # the first needs a browser; docs have a conftest.py too
SANITIZED = ("test_shrink.py",)  # without --sanitize too


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def the_same_random_numbers() -> None:
    """Whatever ran before in the same worker."""
    torch.manual_seed(0)


@pytest.fixture
def number_of_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-target", action="store_true", help="compile the kernels for all eleven GPUs, not one")
    parser.addoption(
        "--thorough", action="store_true", help="20 times the examples of properties, traffic in every dtype"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SANITIZED:
            item.add_marker("sanitized")
