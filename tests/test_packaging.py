"""What an installation consists of."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import srm_triton

ROOT = Path(__file__).parents[1]


def test_every_package_is_shipped():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "srm_triton").rglob("__init__.py")]
    assert sorted(listed) == sorted([*found, "srm_triton.kernels", "srm_triton.training.recipes"])


def test_the_version_is_that_of_the_package():
    assert srm_triton.__version__ == version("srm-triton")
    assert f"\n## {srm_triton.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {srm_triton.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_a_source_distribution_holds_what_its_tests_need():
    """setuptools takes packages and the README by itself, of the tests only those named test_*.py."""
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    files = {name for line in lines for name in line.split()[1:] if line.startswith("include ")}
    folders = {line.split()[1] for line in lines if line.startswith("graft ")}
    assert folders >= {"tests", "bench", "docs"} and all((ROOT / name).exists() for name in folders | files)
    needed = set(re.findall(r"ROOT / \"([^\"]+)\"", " ".join(path.read_text() for path in ROOT.glob("tests/*.py"))))
    needed |= {"Makefile", "constraints.txt"}  # of `make test`
    taken = {"srm_triton", "kernels", "README.md", "pyproject.toml", "MANIFEST.in", "LICENSE", *folders, *files}
    assert {name.partition("/")[0] for name in needed} <= taken
