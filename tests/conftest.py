"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before triton is first imported."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest_plugins = ["pytester", "sanitizer"]
SANITIZED = ("test_shrink.py",)  # without --sanitize too


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-target", action="store_true", help="compile the kernels for all eleven GPUs, not one")
    parser.addoption(
        "--thorough", action="store_true", help="20 times the examples of properties, traffic in every dtype"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SANITIZED:
            item.add_marker("sanitized")
