"""The guides from top to bottom, as a reader follows them: code, scripts and commands, in one empty folder.

Blocks of ``python`` run as doctests, or, without a prompt, become the file that their first line names; commands in
blocks of ``sh`` must succeed. What a page indents is not run: it needs a GPU, a data set, or minutes.
"""

import doctest
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from srm_triton.cli import main
from srm_triton.training import load_recipe

DOCS = Path(__file__).parent.parent / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))


class Block(NamedTuple):
    language: str
    text: str
    line: int
    """At which it begins in its page, from 0."""


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(found[1], found[2], text.count("\n", 0, found.start(2)))


def run_command(line: str) -> int:
    """The exit code of a command of a guide."""
    program, *arguments = shlex.split(line)
    if program == "srm-triton":
        return main(arguments)
    assert program == "torchrun", f"no way to run {line!r}"
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", *arguments], timeout=300).returncode


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_reader_gets_through(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, text, line in blocks(page):
        if language == "python" and ">>>" in text:
            examples = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), line)
            assert not doctest.DocTestRunner().run(examples, clear_globs=False).failed
            names = examples.globs
        elif language == "python":
            Path(text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        elif language == "sh":
            for command in text.replace("\\\n", " ").splitlines():
                assert run_command(command) == 0, command
        else:  # `test_docs.py` looks at what stands in no fence
            assert language in ("text", "toml"), f"{page.name}, line {line}: nothing runs a block of {language!r}"


def test_the_recipe_of_the_guide_is_one(tmp_path: Path) -> None:
    recipes = [block.text for page in GUIDES for block in blocks(page) if block.language == "toml"]
    assert len(recipes) == 1
    (tmp_path / "recipe.toml").write_text(recipes[0], encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.toml").augmentation.crop == 2


@pytest.mark.parametrize("name", ["deep-networks", "gradients", "losses", "time-constants"])
def test_accuracies_are_those_of_the_results(name: str) -> None:
    """`make learning` may have changed them."""
    quoted = re.findall(r"\d\d\.\d ± \d\.\d|\b\d\d\.\d\b", (DOCS / "guides" / f"{name}.md").read_text(encoding="utf-8"))
    results = (DOCS / "results.md").read_text(encoding="utf-8")
    assert len(quoted) >= 4
    assert [accuracy for accuracy in quoted if accuracy not in results] == []


@pytest.mark.parametrize("page", [*DOCS.rglob("*.md"), DOCS / "tutorial.ipynb"], ids=lambda page: page.stem)
def test_links_lead_to_what_exists(page: Path) -> None:
    """To files, and to headings as a Git host names them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target
