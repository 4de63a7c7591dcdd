"""How long each page takes to be drawn: by its address in a fresh browser (cold), and by a click in the sidebar (warm).

    python benchmarks/pages.py [--experiment example-demo] [--others 100]

Drawn means that the page's script has ended and its heading is there; charts may follow within a frame or two. Cold
includes loading the browser's side of the app; first is the same on a server that has not drawn that page yet. Warm is
the median of three. With --others, the home also holds as many experiments of ten other users (copies of the examples).
Prints one JSON object: seconds by page.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.running import CHROMIUM_FLAGS, running_app

HOME = "Sliding-Window Merging Studio"
PAGES = (HOME, "Experiment", "Redundancy", "Preview", "Run", "Compare", "Studies", "Sweeps", "Playground", "Report")
ROUNDS = 3


def main() -> None:
    """Measure all pages of one experiment and print the seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--experiment", default="example-demo")
    parser.add_argument("--others", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        fill(Path(home), options.others)
        print(json.dumps(page_seconds(home, options.experiment), indent=1))


def fill(home: Path, count: int) -> None:
    """Put copies of the examples into a home, each with an owner."""
    examples = sorted((ROOT / "assets" / "experiments").glob("example-*"))
    for number in range(count):
        folder = home / "experiments" / f"experiment-{number:03d}"
        shutil.copytree(examples[number % len(examples)], folder)
        file = folder / "experiment.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "owner": f"user{number % 10}@example.com"}))


def page_seconds(home: str, experiment: str) -> dict[str, dict[str, float]]:
    """Seconds by page, cold and warm."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with running_app(SWM_HOME=home) as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        found: dict[str, dict[str, float]] = {name: {} for name in PAGES}
        for kind, name in ((kind, name) for kind in ("first", "cold") for name in PAGES):
            page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
            start = time.perf_counter()
            page.goto(f"{address}/{'' if name == HOME else name.lower()}?experiment={experiment}")
            drawn(page, name)
            found[name][kind] = round(time.perf_counter() - start, 2)
            page.close()
        page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
        page.goto(f"{address}/report?experiment={experiment}")
        drawn(page, "Report")
        clicks: dict[str, list[float]] = {name: [] for name in PAGES}
        for name in PAGES * ROUNDS:
            start = time.perf_counter()
            page.get_by_role("link", name="Home" if name == HOME else name, exact=True).click()
            drawn(page, name)
            clicks[name].append(time.perf_counter() - start)
            page.wait_for_timeout(1000)  # the charts of this page are not part of the next one's time
        browser.close()
    for name, seconds in clicks.items():
        found[name]["warm"] = round(statistics.median(seconds), 2)
    return found


def drawn(page: Any, title: str) -> None:
    """Wait until the page with this title is drawn."""
    page.wait_for_selector(f"h1:has-text('{title}')", timeout=60_000)
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=60_000)


if __name__ == "__main__":
    main()
