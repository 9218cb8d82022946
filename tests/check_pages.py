"""The built site in a browser: `make pages`. Needs a Chromium, which Playwright or the system's packages install.

Every page at the width of a desk and of a telephone: no error on the console, nothing wider than the window, links that
lead somewhere, and axe's checks of accessibility. The search finds words, and the interactive neuron is `srm_trace`.
"""

import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from srm_triton import SRMParameters, srm_trace

SITE = Path(__file__).parent.parent / "build" / "docs"
WIDTHS = {"desk": (1280, 900), "telephone": (360, 740)}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def served() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def check(page: Page, address: str, name: str, screenshots: Path) -> Iterator[str]:
    """What is wrong with a page."""
    errors: list[str] = []
    listeners = {
        "console": lambda message: errors.append(message.text) if message.type == "error" else None,
        "response": lambda response: (
            errors.append(f"{response.status} {response.url}") if response.status >= 400 else None
        ),
        "pageerror": lambda error: errors.append(str(error)),
        "requestfailed": lambda request: errors.append(f"no {request.url}"),
    }
    for device, (width, height) in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        for event, listener in listeners.items():
            page.on(event, listener)  # type: ignore[call-overload]
        page.goto(address + name)
        for event, listener in listeners.items():  # before axe asks for style sheets by wrong names
            page.remove_listener(event, listener)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if wide > 0:
            yield f"{wide} pixels wider than a {device}"
        page.screenshot(path=screenshots / f"{name.replace('/', '-')}-{device}.png")
        for found in Axe().run(page).response["violations"]:
            yield f"{found['id']} on a {device}: {found['nodes'][0]['html'][:120]} ({len(found['nodes'])} such)"
    yield from errors


def check_links(page: Page, address: str, names: list[str]) -> Iterator[str]:
    """Links within the site that lead nowhere."""
    anchors: dict[str, set[str]] = {}
    links: list[tuple[str, str]] = []
    for name in names:
        page.goto(address + name)
        anchors[address + name] = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        hrefs = page.evaluate("[...document.querySelectorAll('a[href]')].map(e => e.getAttribute('href'))")
        links += [(name, urljoin(address + name, href)) for href in hrefs]
    for name, link in sorted(set(links)):
        target, anchor = urldefrag(link)
        if not target.startswith(address):
            continue
        target = f"{address}index.html" if target == address else target
        if target not in anchors and not (SITE / target.removeprefix(address).partition("?")[0]).is_file():
            yield f"{name}: no {target.removeprefix(address)}"
        elif anchor and anchor not in anchors.get(target, {anchor}):
            yield f"{name}: no #{anchor} in {target.removeprefix(address)}"


def check_search(page: Page, address: str) -> Iterator[str]:
    page.goto(f"{address}search.html?q=threshold")
    page.wait_for_selector("ul.search li a", timeout=20_000)
    if page.locator("ul.search li a").count() < 5:
        yield "the search for 'threshold' finds little"


def check_neuron(page: Page, address: str) -> Iterator[str]:
    page.goto(f"{address}neuron.html")
    page.get_by_role("button", name="two bursts").click()
    for tau_m, tau_s, threshold in ((5.0, 3.0, 1.0), (20.0, 6.0, 1.5), (8.0, 1.0, 0.8)):
        for name, value in (("tauM", tau_m), ("tauS", tau_s), ("threshold", threshold)):
            page.locator(f"input[name={name}]").evaluate(
                f"e => {{ e.value = {value}; e.dispatchEvent(new Event('input', {{bubbles: true}})) }}"
            )
        current = torch.zeros(1, 40, 1, dtype=torch.float64)
        current[:, 4:9] = current[:, 24:29] = 1
        spikes = srm_trace(current, SRMParameters(tau_m=tau_m, tau_s=tau_s, threshold=threshold)).spikes
        expected = ", ".join(map(str, spikes.flatten().nonzero().flatten().tolist()))
        if f" {expected}." not in page.locator(".summary").inner_text():
            yield f"{page.locator('.summary').inner_text()} where srm_trace fires at {expected}"
    page.locator("input[aria-label='input spike at step 0']").focus()
    before = page.locator("svg .input").count()
    page.keyboard.press("Space")
    if page.locator("svg .input").count() != before + 1:
        yield "the keyboard puts no spike into the input"


def main() -> int:
    """Prints what is wrong, and returns 1 if anything is."""
    names = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if "_static" not in path.parts)
    names = sys.argv[1:] or names
    screenshots = SITE.parent / "screenshots"
    screenshots.mkdir(exist_ok=True)
    wrong = []
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        for name in names:
            wrong += [f"{name}: {what}" for what in check(page, address, name, screenshots)]
        for part in (check_links(page, address, names), check_search(page, address), check_neuron(page, address)):
            wrong += list(part)
        browser.close()
    print(*wrong, f"{len(names)} pages, {len(wrong)} findings; pictures in {screenshots}", sep="\n")
    return 1 if wrong or not names else 0


if __name__ == "__main__":
    sys.exit(main())
