"""Take screenshots of every page, by default with the experiments that ship with the program.

    python tools/screenshots.py [FOLDER] [--width 1280] [--scheme light|dark]

Needs Chromium and playwright (requirements-dev.txt). Writes docs/<page>.png.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.running import CHROMIUM_FLAGS, running_app  # noqa: E402

TALLEST = 2600
SHOWN = {"studies": "?experiment=example-study"}  # instead of the first experiment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "docs")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--home", help="use this SWM_HOME instead of an empty one")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as empty, running_app(SWM_HOME=options.home or empty) as (address, _):
        take_screenshots(address, options)


def take_screenshots(address: str, options: argparse.Namespace) -> None:
    from playwright.sync_api import sync_playwright

    pages = ["", *sorted(page.stem for page in (ROOT / "pages").glob("*.py"))]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        for name in pages:
            size = {"width": options.width, "height": 900}
            page = browser.new_page(viewport=size, color_scheme=options.scheme)
            page.goto(f"{address}/{name}{SHOWN.get(name, '')}")
            page.wait_for_selector("h1")
            height = settled_height(page)
            page.set_viewport_size({**size, "height": min(max(height, 700), TALLEST)})
            page.wait_for_timeout(1000)
            page.screenshot(path=options.folder / f"{name or 'home'}.png")
            page.close()
        browser.close()


def settled_height(page: Any) -> int:
    """Height of a page once it no longer grows: charts and tables are drawn after it."""
    height, former = 0, -1
    while height != former:
        page.wait_for_timeout(2500)
        former, height = height, page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    return int(height)


if __name__ == "__main__":
    main()
