"""The pages of the site: that no code in them goes unchecked, that what they name exists, and the interactive neuron.

Examples with prompts run as doctests, the guides as a whole in `test_guides.py`. Links are checked by `make docs`, the
pages in a browser by `make pages`.
"""

import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from check_site import missing
from markdown_it import MarkdownIt
from py_mini_racer import MiniRacer

import srm_triton
from srm_triton import SRMParameters, srm_scan, srm_trace
from srm_triton.cli import _parser
from srm_triton.training import built_in_recipes

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OF_RELEASES = {DOCS / "release.md", *(DOCS / "packaging").rglob("*.md")}  # steps for a maintainer, no part of the site
PAGES = [*sorted(set(DOCS.rglob("*.md")) - OF_RELEASES), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PROGRAMS = ("srm-triton", "torchrun", "make", "pip", "python", "python3")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = {
    name
    for names in re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in names.split()
}


class Block(NamedTuple):
    language: str | None
    """None for a block that is indented."""
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and not token.info.startswith("{"):  # directives are checked by `make docs`
            yield Block(token.info, token.content)
        elif token.type == "code_block":
            yield Block(None, token.content)


def inline(page: Path) -> set[str]:
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    return {child.content for token in tokens for child in token.children or () if child.type == "code_inline"}


def check_command(line: str) -> None:
    """Fails for a command that its program would not take."""
    program, *arguments = shlex.split(line, comments=True)
    match Path(program).name:
        case "srm-triton":
            options = _parser().parse_args(arguments)  # ends the process if it cannot
            recipe = getattr(options, "recipe", None)
            assert recipe in {None, *built_in_recipes()} or recipe.endswith(".toml"), recipe
        case "torchrun" if "srm_triton" in arguments:
            check_command(shlex.join(["srm-triton", *arguments[arguments.index("srm_triton") + 1 :]]))
        case "make":
            assert {argument for argument in arguments if "=" not in argument} <= TARGETS, line
        case "pip":
            assert arguments[0] == "install" and len(arguments) > 1, line
            for extra in ",".join(re.findall(r"\.\[(.*?)\]", line)).split(","):
                assert not extra or extra in EXTRAS, line
        case "python" | "python3" if arguments[0] == "-m":
            module = ROOT / arguments[1].replace(".", "/")
            assert module.with_suffix(".py").is_file() or arguments[1] in ("venv", "pytest", "build"), line
        case _:
            raise AssertionError(f"nothing checks {line!r}")


def check_python(text: str) -> None:
    """Fails for what is no Python, or looks up what this package does not have."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("srm_triton."):
            reduce(getattr, ast.unparse(node).split(".")[1:], srm_triton)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_code_goes_unchecked(page: Path) -> None:
    for language, text in blocks(page):
        lines = text.replace("\\\n", " ").strip().splitlines()
        if language is None and Path(lines[0].split()[0]).name in PROGRAMS:
            for line in lines:
                check_command(line)
        elif language is None:
            check_python(text)
        elif language == "yaml":
            for job in yaml.safe_load(text)["jobs"].values():
                for step in job["steps"]:
                    check_command(step.get("run", "make test").partition(" > ")[0])
        elif language == "python":
            assert ">>> " in text or page.parent.name == "guides", f"nothing runs\n{text}"
        elif language in ("sh", "toml"):
            assert page.parent.name == "guides", f"nothing runs\n{text}"
        else:
            assert language == "text", f"nothing checks a block of {language!r}\n{text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_named_exists(page: Path) -> None:
    for code in inline(page):
        if re.fullmatch(r"(tests|kernels|bench|srm_triton|docs|\.ci)/[\w./-]+", code):
            assert (ROOT / code).exists(), code
        elif command := re.match(r"make ([a-z-]+)", code):
            assert command[1] in TARGETS, code
        elif command := re.match(r"srm-triton ([a-z]+)", code):
            assert command[1] in next(action.choices for action in _parser()._actions if action.choices), code
        elif re.fullmatch(r"srm_triton(\.\w+)+", code):
            module, _, name = code.rpartition(".")
            try:
                importlib.import_module(code)
            except ModuleNotFoundError:
                getattr(importlib.import_module(module), name)  # warns, so fails, for a name of before


def test_every_public_name_has_a_place_in_the_api() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    named = set(re.findall(r"auto(?:class|function):: srm_triton\.(?:\w+\.)?(\w+)", text))
    modules = set(re.findall(r"automodule:: (\S+)\n   :members:", text))
    listed = {name for module in modules for name in getattr(importlib.import_module(module), "__all__", ())}
    assert set(srm_triton.__all__) - {"synaptic_operations"} <= named | listed
    packages = {f"srm_triton.{path.parent.name}" for path in (ROOT / "srm_triton").glob("*/__init__.py")}
    assert packages - {"srm_triton.commands", "srm_triton.ops"} <= modules


def test_every_operation_shows_its_equations_and_its_code() -> None:
    pages = {page: page.read_text(encoding="utf-8") for page in (DOCS / "operations").glob("*.md")}
    equations = re.findall(
        r"```{include} \.\./\.\./srm_triton/(\S+)\.py\n:start-after: '\"\"\"'", "".join(pages.values())
    )
    assert sorted(equations) == sorted(
        ["affine", *(f"ops/{path.stem}" for path in (ROOT / "srm_triton/ops").glob("[a-z]*.py"))]
    )
    for page, text in pages.items():
        if page.stem != "index":
            assert "{literalinclude} ../../srm_triton/" in text
            assert "## How it is checked" in text and "## How fast it is" in text
            kernel = ROOT / "kernels" / f"{page.stem}.py"
            assert not kernel.exists() or f"{{literalinclude}} ../../kernels/{kernel.name}" in text


@pytest.fixture(scope="module")
def script() -> MiniRacer:
    engine = MiniRacer()
    engine.eval((DOCS / "_static" / "neuron.js").read_text(encoding="utf-8"))
    return engine


def simulated(script: MiniRacer, tau_m: float, tau_s: float, threshold: float, current: torch.Tensor) -> torch.Tensor:
    """What the page draws, [synapse, membrane, spike] at each step."""
    constants = json.dumps({"tauM": tau_m, "tauS": tau_s, "threshold": threshold})
    steps = json.loads(script.eval(f"JSON.stringify(simulate({constants}, {current.tolist()}))"))
    values = [[step["synapse"], step["membrane"], float(step["spike"])] for step in steps]
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "constants", [(5.0, 3.0, 1.0), (20.0, 1.0, 0.5), (4.0, 4.0, 0.3), (1.5, 20.0, 0.1), (30.0, 7.5, 2.95)]
)
def test_the_neuron_on_the_page_is_that_of_srm_scan_bit_for_bit(
    script: MiniRacer, constants: tuple[float, ...]
) -> None:
    current = torch.rand(400, dtype=torch.float64) * (torch.rand(400) < 0.5)
    synapse, membrane, spikes = simulated(script, *constants, current).T
    parameters = SRMParameters(tau_m=constants[0], tau_s=constants[1], threshold=constants[2])
    trace = srm_trace(current[None], parameters)
    assert 10 < trace.spikes.sum() < 390
    assert torch.equal(spikes, trace.spikes[0]) and torch.equal(membrane, trace.membrane[0])
    assert simulated(script, 5.0, 1.0, 0.5, torch.tensor([0.5, 0.0, 0.6]))[:, 2].tolist() == [
        0,
        0,
        1,
    ]  # not at θ itself
    state = None
    for t in range(50):
        _, state = srm_scan(current[None, t : t + 1], parameters, state, return_state=True)
        assert state.synapse == (0 if spikes[t] else synapse[t] * (1 - 1 / constants[1]))


def test_what_the_page_of_the_neuron_says(script: MiniRacer) -> None:
    def fires(pattern: str, *constants: float, weight: float = 1.0) -> list[int]:
        input_spikes = script.eval(f"JSON.stringify([...Array(STEPS).keys()].map(PATTERNS['{pattern}']))")
        current = weight * torch.tensor(json.loads(input_spikes), dtype=torch.float64)
        return simulated(script, *constants, current)[:, 2].nonzero().flatten().tolist()

    def peak(*constants: float) -> int:
        return int(simulated(script, *constants, torch.eye(40, dtype=torch.float64)[4])[:, 1].argmax())

    assert peak(5, 1, 3) == 4 < peak(5, 3, 3) < peak(5, 6, 3)
    assert len(fires("every third step", 3, 3, 1)) < len(fires("every third step", 10, 3, 1))
    assert fires("two bursts", 5, 3, 2.5) == [29]
    assert fires("every third step", 5, 3, 2, weight=2) == fires("every third step", 5, 3, 1) == [6, 15, 24, 33]


def test_the_checker_of_the_built_site_finds_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "page.html").write_text("<p id='here'><a href='../index.html#top'>up</a></p>")
    (tmp_path / "shown.png").touch()
    (tmp_path / "site.css").write_text("@import 'https://fonts.example/a.css'; p { background: url(data:image/png,x) }")
    (tmp_path / "index.html").write_text(
        "<h1 id='top'>x</h1><a href='sub/page.html#here'>1</a> <a href='#top'>2</a> <a href='https://example.org'>3</a>"
        "<img src='shown.png' alt='a neuron'><link rel='stylesheet' href='site.css'>"
        "<a href='sub/other.html'>4</a> <a href='sub/page.html#there'>5</a> <a href='#bottom'>6</a>"
        "<img src='lost.png' alt='lost'> <img src='shown.png'> <img src='shown.png' alt='shown.png'>"
        "<script src='https://cdn.example/x.js'></script><script src='lost.js'></script>"
    )
    assert sorted(missing(tmp_path)) == [
        "index.html: loads https://cdn.example/x.js",
        "index.html: no lost.js",
        "index.html: no lost.png",
        "index.html: no place #bottom",
        "index.html: no place sub/page.html#there",
        "index.html: no sub/other.html",
        "index.html: shown.png has no text",
        "index.html: shown.png has no text",
        "site.css: loads //fonts.example/a.css",
    ]
    assert list(missing(tmp_path / "empty")) == [f"{tmp_path / 'empty'}: no pages"]
