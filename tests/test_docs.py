"""The pages of the site beside the guides: commands, names, and the script of the interactive neuron."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import quickjs
import torch
from test_guides import DOCS, GUIDES, blocks

import srm_triton
from srm_triton import SRMParameters, srm_trace
from srm_triton.cli import _parser

ROOT = DOCS.parent
PAGES = sorted({*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"} - set(GUIDES))
SCRIPT = DOCS / "_static" / "neuron.js"


def simulated(parameters: dict[str, float], current: list[float]) -> dict[str, list[float]]:
    """What the page's script makes of a current."""
    context = quickjs.Context()
    context.eval(SCRIPT.read_text(encoding="utf-8"))
    steps = json.loads(context.eval(f"JSON.stringify(simulate({json.dumps(parameters)}, {json.dumps(current)}))"))
    return {name: [step[name] for step in steps] for name in ("synapse", "membrane", "spike")}


@pytest.mark.parametrize("constants", [(5.0, 3.0, 1.0), (20.0, 1.0, 0.5), (4.0, 4.0, 0.3), (1.5, 20.0, 0.15)])
def test_the_interactive_neuron_is_that_of_srm_scan(constants: tuple[float, float, float]) -> None:
    tau_m, tau_s, threshold = constants
    current = torch.rand(60, dtype=torch.float64) * (torch.rand(60) < 0.4)
    trace = srm_trace(current.view(1, 60, 1), SRMParameters(tau_m=tau_m, tau_s=tau_s, threshold=threshold))
    found = simulated({"tauM": tau_m, "tauS": tau_s, "threshold": threshold}, current.tolist())
    assert found["spike"] == (trace.spikes.flatten() > 0).tolist() and any(found["spike"]) and not all(found["spike"])
    for drawn, potential in zip(found["membrane"], trace.membrane.flatten().tolist(), strict=True):
        assert math.isclose(drawn, potential, rel_tol=1e-12, abs_tol=1e-15)
    synapse = 0.0
    for x, drawn, spike in zip(current.tolist(), found["synapse"], found["spike"], strict=True):
        synapse += x
        assert math.isclose(drawn, synapse, rel_tol=1e-12)
        synapse *= 0 if spike else 1 - 1 / tau_s


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_those_of_the_program(page: Path) -> None:
    lines = re.findall(r"^(?:    |\$ )(srm-triton .*(?:\\\n.*)*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    for line in lines:
        _parser().parse_args(shlex.split(line.replace("\\\n", " "))[1:])  # ends the process if it cannot


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_code_goes_unchecked(page: Path) -> None:
    """Python blocks have prompts, by which they are doctests; the rest is none, or GitHub's."""
    for language, text, line in blocks(page):
        if language == "python":
            assert ">>>" in text, f"{page.name}, line {line}: code without a prompt is not run"
        else:
            assert language in ("", "yaml", "text"), f"{page.name}, line {line}: nothing checks {language!r}"


def test_every_public_name_has_a_page() -> None:
    reference = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    modules = set(re.findall(r"automodule:: (\S+)", reference))
    documented = set(re.findall(r"auto(?:class|function):: srm_triton\.(?:\w+\.)?(\w+)", reference))
    for module in modules - {"srm_triton.tuning", "srm_triton.compat"}:
        documented |= set(__import__(module, fromlist=["*"]).__all__)
    assert set(srm_triton.__all__) <= documented
    for subpackage in ("images", "sparse", "regression", "data", "training", "audit", "losses", "diagnosis", "plots"):
        assert f"srm_triton.{subpackage}" in modules
