"""What the built site links to, loads and shows, looked up without a browser: `python tests/check_site.py build/docs`.

Every link within the site leads to a page, and to a place in it, that exists; nothing is loaded from elsewhere, so that
the site works offline; every image has a text that says what it shows.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}


class Reference(NamedTuple):
    tag: str
    target: str
    text: str | None
    """The text of an image."""


class Page(HTMLParser):
    """The identifiers and references of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.identifiers: set[str] = set()
        self.references: list[Reference] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.identifiers.add(given.get("id") or "")
        target = given.get("href" if tag == "a" else LOADED.get(tag, ""))
        if target is not None:
            self.references.append(Reference(tag, target, given.get("alt")))


def missing(site: Path) -> Iterator[str]:
    """What is wrong, a line each."""
    site = site.resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: no pages"
    for path, page in pages.items():
        name = path.relative_to(site)
        for tag, target, text in page.references:
            link = urlsplit(target)
            elsewhere = bool(link.scheme or link.netloc)
            if elsewhere and tag != "a" and link.scheme != "data":
                yield f"{name}: loads {target}"
            if tag == "img" and (not text or text == target):
                yield f"{name}: {target} has no text"
            if elsewhere:
                continue
            other = (path.parent / unquote(link.path)).resolve() if link.path else path
            if not other.is_file():
                yield f"{name}: no {target}"
            elif link.fragment and unquote(link.fragment) not in pages[other].identifiers:
                yield f"{name}: no place {target}"
    for path in sorted(site.rglob("*.css")):
        for target in re.findall(
            r"(?:url\(|@import)\s*[\"']?(?:https?:)?(//[^\"')]+)", path.read_text(encoding="utf-8")
        ):
            yield f"{path.relative_to(site)}: loads {target}"


def main() -> int:
    """Prints what is wrong, and returns 1 if anything is."""
    (site,) = map(Path, sys.argv[1:])
    found = list(missing(site))
    print(*found, f"{len(found)} findings in {site}", sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
