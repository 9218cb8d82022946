"""What an installation consists of."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_shipped():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "srm_triton").rglob("__init__.py")]
    assert sorted(listed) == sorted([*found, "srm_triton.kernels", "srm_triton.training.recipes"])
