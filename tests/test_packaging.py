"""What an installation consists of."""

import re
import subprocess
import sys
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
    assert f"\n  version: {srm_triton.__version__}\n" in (ROOT / "docs" / "packaging" / "recipe.yaml").read_text()


def test_wheels_are_built_for_the_tested_pythons():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    classified = re.findall(r":: 3\.(\d+)$", "\n".join(settings["project"]["classifiers"]), re.MULTILINE)
    versions = re.fullmatch(r"cp3\{([\d,]+)\}-manylinux_x86_64", settings["tool"]["cibuildwheel"]["build"])[1]
    assert classified == versions.split(",")


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


def test_the_first_namespace_is_about_spiking_layers():
    """Images, sparse codes and regression are imported when they are used; their former names say where they are."""
    program = (
        "import sys, warnings, srm_triton\n"
        "others = [f'srm_triton.{name}' for name in ('images', 'regression', 'sparse')]\n"
        "assert not set(others) & set(sys.modules)\n"
        "assert srm_triton.images.denoise_tv and srm_triton.sparse.soft_threshold\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    from srm_triton import LinearRegression\n"
        "assert LinearRegression is srm_triton.regression.LinearRegression\n"
        "assert {str(w.message) for w in caught} == "
        "{'srm_triton.LinearRegression is srm_triton.regression.LinearRegression now'}\n"
        "srm_triton.SparseLayer\n"
    )
    process = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True)
    assert process.stderr.splitlines()[-1] == "AttributeError: module 'srm_triton' has no attribute 'SparseLayer'"
