"""The built site in a browser: `make pages`. Needs Chromium, of the system or by `playwright install chromium`.

Every page at the width of a desk, in light, and of a telephone, in dark: no error on the console, nothing loaded from
elsewhere or beyond the edge of the window, and no finding of axe, the checker of accessibility. The search finds words,
and the interactive neuron fires when `srm_trace` does. Pictures of all pages are left beside the site.
"""

import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

from srm_triton import SRMParameters, srm_trace

DEVICES = {"desk": (1280, 900, "light"), "telephone": (360, 740, "dark")}
# elements beyond the right edge, but for what the reader can scroll to
BEYOND = """
[...document.querySelectorAll("article *")].filter((element) => {
  if (element.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let box = element; box.tagName !== "ARTICLE"; box = box.parentElement)
    if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)) return false;
  return true;
}).map((element) => element.outerHTML.slice(0, 150))
"""
WORDS = ("threshold", "calibrate_gain", "SpikingJelly")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of the site."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def look(page: Page, address: str, device: str, picture: Path) -> Iterator[str]:
    """What is wrong with a page on a device."""
    width, height, scheme = DEVICES[device]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(address)
    if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        yield "scrolls to the right"
    yield from (f"goes beyond the window: {element}" for element in page.evaluate(BEYOND)[:1])
    page.screenshot(path=picture, full_page=True)
    for found in Axe().run(page).response["violations"]:
        yield f"{found['id']}: {found['help']}; {len(found['nodes'])} times, first {found['nodes'][0]['html'][:150]}"


def search(page: Page, address: str) -> Iterator[str]:
    for word in WORDS:
        page.goto(f"{address}search.html?q={word}")
        page.wait_for_selector("#search-results h2:text-is('Search Results')")
        if page.locator("ul.search li a").count() < 3:
            yield f"search: little is found of {word!r}"


def neuron(page: Page, address: str) -> Iterator[str]:
    """The page of the neuron, by its sliders, buttons and keys."""
    page.goto(f"{address}neuron.html")
    page.get_by_role("button", name="two bursts").click()
    page.get_by_role("button", name="39", exact=True).click()
    current = torch.zeros(1, 40, dtype=torch.float64)
    current[:, 4:9] = current[:, 24:29] = current[:, 39] = 1
    for tau_m, tau_s, threshold, weight in ((5.0, 3.0, 2.5, 1.0), (30.0, 6.0, 1.5, 0.75), (8.0, 1.0, 0.8, 2.0)):
        for name, value in (("tauM", tau_m), ("tauS", tau_s), ("threshold", threshold), ("weight", weight)):
            page.locator(f"input[name={name}]").fill(str(value))
        spikes = srm_trace(weight * current, SRMParameters(tau_m=tau_m, tau_s=tau_s, threshold=threshold)).spikes
        expected = ", ".join(str(t) for t in spikes[0].nonzero().flatten().tolist())
        said = page.locator(".summary").inner_text()
        if not said.endswith(f" {expected}.") or page.locator("svg line.spike").count() != spikes.sum():
            yield f"neuron: {said!r}, where srm_trace fires at {expected}"
    page.get_by_role("button", name="no spikes").click()
    page.keyboard.press("Shift+Tab")  # to the other patterns, and to the train
    for _ in range(4):
        page.keyboard.press("Shift+Tab")
    for key in ("Home", "ArrowRight", "ArrowDown", "Space"):
        page.keyboard.press(key)
    if page.locator("button[aria-pressed=true]").all_inner_texts() != ["11"]:
        yield "neuron: keys do not put a spike at step 11"
    page.locator("input[name=tauM]").focus()
    before = page.locator("output").first.inner_text()
    page.keyboard.press("ArrowRight")
    if page.locator("output").first.inner_text() == before:
        yield "neuron: keys do not move a slider"


def findings(site: Path, pictures: Path) -> Iterator[str]:
    """What is wrong, a line each."""
    with served(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith((address, "data:")) else wrong.append(request.url)
        )
        for name in sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if "_static" not in path.parts):
            for device in DEVICES:
                picture = pictures / f"{name.replace('/', '-').removesuffix('.html')}-{device}.png"
                for what in (*look(page, address + name, device, picture), *wrong):
                    yield f"{name} on a {device}: {what}"
                wrong.clear()
        yield from search(page, address)
        yield from neuron(page, address)
        yield from wrong
        browser.close()


def main() -> int:
    """Prints what is wrong, and returns 1 if anything is."""
    (site,) = map(Path, sys.argv[1:])
    pictures = site.parent / "pictures"
    pictures.mkdir(exist_ok=True)
    number = 0
    for finding in findings(site, pictures):
        number += 1
        print(finding)
    print(f"{number} findings in {site}; pictures of the pages are in {pictures}")
    return number > 0


if __name__ == "__main__":
    sys.exit(main())
