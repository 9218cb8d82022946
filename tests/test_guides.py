"""The guides from top to bottom, as a reader follows them: code, scripts and commands, in one empty folder.

Blocks of ``python`` run as doctests, or, without a prompt, become the file that their first line names; commands in
blocks of ``sh`` must succeed. What a page indents is not run: it needs a GPU, a data set, or minutes.
"""

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from srm_triton.cli import main

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


PAGES = [page for page in sorted(GUIDES.glob("*.md")) if any(language == "sh" for language, _ in blocks(page))]


def run_command(line: str) -> int:
    """The exit code of a command of a guide."""
    program, *arguments = shlex.split(line)
    if program == "srm-triton":
        return main(arguments)
    assert program == "torchrun", f"no way to run {line!r}"
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", *arguments], timeout=120).returncode


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_reader_gets_through(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, text in blocks(page):
        if language == "python" and ">>>" in text:
            examples = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), 0)
            results = doctest.DocTestRunner().run(examples, clear_globs=False)
            names.update(examples.globs)
            assert not results.failed
        elif language == "python":
            Path(text.splitlines()[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        elif language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                assert run_command(line) == 0, line


def test_the_pages_link_to_what_exists() -> None:
    """Files and headings, as a Git host names these."""
    for page in sorted(GUIDES.parent.rglob("*.md")):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), f"{page}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page}: {target}"


def test_every_block_is_run() -> None:
    """No block of code but in a language that a test runs, and TOML, which is read."""
    for page in sorted(GUIDES.glob("*.md")):
        for language, text in blocks(page):
            assert language in ("python", "sh", "toml"), f"{page}: {language}"
            if language == "python" and ">>>" not in text:
                assert page in PAGES, f"{page}: a script that no command runs"
