"""`chromium`: the system's Chromium without a window. `fits`: a page of ours is legible at a width, to its last fold."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


SCREENSHOTS = os.environ.get("HFWM_SCREENSHOTS")  # a folder, to look at the pages
PHONE, TABLET, DESK = 390, 768, 1280
# What is visible and ends beyond the window, and the smallest letters of a drawing, in pixels of the screen.
MEASURE = """() => {
    document.querySelectorAll('details').forEach(fold => fold.open = true);
    const seen = [...document.querySelectorAll('body *')].filter(one => one.checkVisibility() && one.getClientRects().length);
    const wide = seen.filter(one => one.getBoundingClientRect().right > window.innerWidth + 1);
    const letters = seen.filter(one => one.tagName === 'text').map(one => {
        const drawing = one.ownerSVGElement;
        return parseFloat(getComputedStyle(one).fontSize) * drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width;
    });
    return {width: document.documentElement.scrollWidth, wide: wide.map(one => one.outerHTML.slice(0, 200)), letters: Math.min(99, ...letters)};
}"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `browser`)")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def fits(chromium: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """`fits(html)`: on a phone, a tablet and a desk nothing is cut, letters can be read, and nothing is fetched."""

    def check(html: str) -> None:
        (tmp_path / "page.html").write_text(html)
        for width in (PHONE, TABLET, DESK):
            page = chromium.new_page(viewport={"width": width, "height": 900})
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto((tmp_path / "page.html").as_uri())
            measured = page.evaluate(MEASURE)
            if SCREENSHOTS:
                name = re.sub(r"\W+", "-", request.node.name)
                page.screenshot(path=f"{SCREENSHOTS}/{name}-{width}.png", full_page=True)
            page.close()
            assert measured["width"] <= width and not measured["wide"], measured
            assert measured["letters"] >= 7, measured["letters"]
            assert len(asked) == 1, asked

    return check
