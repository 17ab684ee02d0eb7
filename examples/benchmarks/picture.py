"""
The picture of a report: its top up to the first plot, as a window of 900 pixels shows it. Needs the extra `browser` and Chromium.

    hf-watermark quickstart --output runs/quickstart
    python examples/benchmarks/picture.py runs/quickstart/report.html --output examples/report.png
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 900})
        page.goto(asked.report.resolve().as_uri())
        plot = page.locator("section").first.bounding_box()
        end = plot["y"] + plot["height"] + 16
        shot = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": 900, "height": end})
        browser.close()
    # As few colours as a drawing has: a picture in a README should not be large.
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(256).save(asked.output, optimize=True)


if __name__ == "__main__":
    main()
