"""Writes the Triton kernels as a project of Hugging Face's `kernels`: sources for its builder, and what it builds.

Run `python docs/packaging/hub_kernel.py build/hub`; it needs no package. The layout is that of kernels 0.17:

    build.toml, flake.nix, CARD.md      for kernel-builder, from docs/packaging/hub
    torch-ext/srm_triton/               the modules of kernels/ that are in Triton
    build/torch-<backend>/              the same, with metadata.json, for `kernels.get_local_kernel` and the Hub
"""

import argparse
import base64
import hashlib
import json
import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = ("batch_norm", "shrink", "srm_scan")
SHARED = ("configurations", "launch", "layout")


def write(folder: Path, backends: list[str] | None = None) -> None:
    """Writes the project into a folder, in place of one that is there; `backends` None for those of build.toml."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "packaging" / "hub", folder)
    general = tomllib.loads((folder / "build.toml").read_text())["general"]
    sources = folder / "torch-ext" / general["name"].replace("-", "_")
    sources.mkdir(parents=True)
    for name in (*KERNELS, *SHARED):
        shutil.copy(ROOT / "kernels" / f"{name}.py", sources)
    imports = f"from . import {', '.join(KERNELS)}\n\n__all__ = {list(KERNELS)}\n"
    (sources / "__init__.py").write_text(f"{(ROOT / 'kernels' / '__init__.py').read_text()}\n{imports}")
    for backend in backends or general["backends"]:
        variant = folder / "build" / f"torch-{backend}"
        shutil.copytree(sources, variant)
        metadata = _metadata(general, backend, _digests(variant))
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def _digests(variant: Path) -> dict[str, str]:
    return {
        file.name: base64.b64encode(hashlib.sha256(file.read_bytes()).digest()).decode()
        for file in sorted(variant.iterdir())
    }


def _metadata(general: dict, backend: str, digests: dict[str, str]) -> dict:
    unique = hashlib.sha256("".join(digests.values()).encode()).hexdigest()[:7]
    return {
        "id": f"_{general['name'].replace('-', '_')}_{backend}_{unique}",  # a name of its own for each content
        "name": general["name"],
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is replaced")
    write(parser.parse_args().folder)
