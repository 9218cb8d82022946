"""The kernels as a project of Hugging Face's `kernels`: what its own parser, digests and loader make of it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from srm_triton import SRMParameters, srm_scan

ROOT = Path(__file__).parents[1]
CARD = ROOT / "docs" / "packaging" / "hub" / "CARD.md"


def writer():
    spec = importlib.util.spec_from_file_location("hub_kernel", ROOT / "docs" / "packaging" / "hub_kernel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "project"
    writer().write(folder)
    return folder


def checked(program, *arguments):
    """Runs a program where `kernels` is the package of that name, not this repository's folder, and no network is."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    process = subprocess.run(command, cwd=arguments[0], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_its_parser_accepts_configuration_metadata_and_digests(project):
    program = (
        "import json, sys, pathlib\n"
        "from kernels._rust import Build, Digest, DigestAlgorithm, Metadata\n"
        "from kernels.variants import get_variants_local\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "backends = sorted(str(one) for one in Build.open(root).general.backends)\n"
        "variants = sorted(one.variant_str for one in get_variants_local(root / 'build'))\n"
        "for variant in variants:\n"
        "    metadata = Metadata.read_from_file(root / 'build' / variant / 'metadata.json')\n"
        "    assert metadata.id.isidentifier() and str(metadata.backend.backend_type) == variant.split('-')[1]\n"
        "    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, root / 'build' / variant))\n"
        "print(json.dumps([backends, variants, str(metadata.name), metadata.version, metadata.license]))\n"
    )
    found = json.loads(checked(program, project))
    assert found == [["cuda", "rocm"], ["torch-cuda", "torch-rocm"], "srm-triton", 0, "Apache-2.0"]


def test_its_loader_runs_the_kernels_without_this_package(tmp_path):
    """A variant for the CPU is built for this test only: there Triton's interpreter runs them."""
    writer().write(tmp_path, ["cpu"])
    example = re.search("```python\n(.*?)```", CARD.read_text(), re.DOTALL)[1]
    program = (
        "import sys, importlib.metadata as metadata\n"
        "sys.modules['srm_triton'] = None\n"
        "import pathlib, torch\n"
        "from kernels import get_local_kernel\n"
        "kernel, device = get_local_kernel(pathlib.Path(sys.argv[1]), backend='cpu'), 'cpu'\n"
        f"assert kernel.__all__ == {list(writer().KERNELS)}\n"
        f"{example}"
        "metadata.version = lambda name: (_ for _ in ()).throw(metadata.PackageNotFoundError(name))\n"
        "kernel.configurations.version = metadata.version\n"
        "print(kernel.configurations.versions()[0])\n"
        "current = torch.rand(3, 9, 5, generator=torch.Generator().manual_seed(0)) * 2\n"
        "spikes = torch.empty_like(current)\n"
        "kernel.srm_scan.forward(current, constants, None, spikes, none, none, none.int(), None, None, time_axis=1)\n"
        "torch.save((current, spikes), 'spikes.pt')\n"
    )
    printed = checked(program, tmp_path).splitlines()
    assert printed == [re.search("# (tensor.*)", example)[1], "srm_triton missing"]
    import torch

    current, spikes = torch.load(tmp_path / "spikes.pt")
    assert spikes.sum() > 5
    torch.testing.assert_close(spikes, srm_scan(current, SRMParameters()), rtol=0, atol=0)


def test_sources_are_those_of_the_repository_and_another_content_has_another_name(project):
    for module in (project / "torch-ext" / "srm_triton").glob("*.py"):
        kept = (ROOT / "kernels" / module.name).read_text()
        assert module.read_text().startswith(kept), module.name
        assert not re.search(r"^\s*(from|import) srm_triton", kept, re.MULTILINE)
    digests = {"a.py": "one"}, {"a.py": "two"}
    general = {"name": "srm-triton", "version": 0, "license": "Apache-2.0"}
    assert len({writer()._metadata(general, "cuda", one)["id"] for one in digests}) == 2
