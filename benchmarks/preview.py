"""The preview in a real browser, on the threshold path of a model with 80 layers. Prints one JSON object.

Measures the time from a slider event to the updated picture on the screen, and from releasing the slider to the chart
of windows tried, which the server draws; the time to the first page; the app's memory with many experiments; and ten
browsers that move their sliders at once.

    python benchmarks/preview.py [--layers 80] [--experiments 50]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from swm.search.kept_path import KeptAnswers, save_answers, save_path
from swm.settings import SAMPLE_PROMPTS
from tools.running import CHROMIUM_FLAGS, running_app

MOVES = 60
BROWSERS = 10
WATCH = """slider => {
  window.lags = [];
  slider.addEventListener("input", event => requestAnimationFrame(() => setTimeout(() =>
    window.lags.push(performance.now() - event.timeStamp))));
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--experiments", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["SWM_HOME"] = home
        tried = make_experiments(options.layers, options.experiments)
        with running_app() as (address, pid):
            print(json.dumps({"benchmark": "preview", **tried, **measured(address, psutil.Process(pid))}, indent=1))


def make_experiments(layers: int, count: int) -> dict[str, int]:
    """Experiments as the stages write them; similarity decreases with the window's length, plus noise."""
    from swm.search.find import threshold_path
    from swm.settings import ExperimentSettings
    from swm.workspace.experiments import Experiment

    def score(above: Any, window: Any) -> float:
        noise = random.Random(f"{above}{window}").uniform(-0.04, 0.0)
        return max(0.0, 1 - 0.03 * (len(window) - 1) - 0.01 * len(above) + noise)

    facts = {"architecture": "Random", "layers": layers, "parameters": 7e10, "parameters_per_layer": 8e8}
    facts |= {"size_bytes": 14e10, "dtype": "bfloat16", "width": 8192}
    path = threshold_path(layers, score, 0.5)
    for number in range(count):
        experiment = Experiment.create(f"bench-{number}", ExperimentSettings("some-model"), facts)
    rng = random.Random(1)
    words = ["the", "model", "of", "a", "plan", "writes", "some", "words", "after", "each", "prompt"]
    plans = [(), *(step.plan.windows for step in path.intervals())]
    path.perplexities = {windows: 10 * 1.05 ** len(windows) for windows in plans}
    save_path(experiment, path)
    answers = {windows: [" ".join(rng.choices(words, k=24)) for _ in SAMPLE_PROMPTS] for windows in plans}
    save_answers(experiment, KeptAnswers(path.rule, of=answers))
    return {
        "layers": layers,
        "experiments": count,
        "windows_tried": len(path.similarities),
        "intervals": len(path.intervals()),
    }


def measured(address: str, process: psutil.Process) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    page_address = f"{address}/preview?threshold=0.9"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.wait_for_selector("text=See redundancy")
        start = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("text=See redundancy")
        first_page = time.perf_counter() - start
        page.goto(page_address)
        lags = drag(page)
        released = [release(page, share) for share in (0.9, 0.7, 0.5, 0.8, 0.6)]
        alone = process.memory_info().rss
        errors: list[str] = []
        pages = [browser.new_context().new_page() for _ in range(BROWSERS)]
        for other in pages:
            other.on("pageerror", lambda error: errors.append(str(error)))
            other.goto(page_address)
        together = [lag for other in pages for lag in drag(other)]
        waited = [release(other, 0.3 + 0.06 * number) for number, other in enumerate(pages)]
        errors += [text for other in pages for text in other.locator("[data-testid=stAlert]").all_inner_texts()]
        browser.close()
    return {
        "moved_to_picture_ms": quantiles(lags),
        "released_to_windows_tried_ms": quantiles(released),
        "first_page_seconds": round(first_page, 2),
        "app_memory_mib": round(alone / 2**20),
        "ten_browsers": {
            "moved_to_picture_ms": quantiles(together),
            "released_to_windows_tried_ms": quantiles(waited),
            "errors": errors,
            "app_memory_mib": round(process.memory_info().rss / 2**20),
        },
    }


def drag(page: Any) -> list[float]:
    """Milliseconds from each move of the slider to the updated picture; the button stays down until the end."""
    slider = page.locator("input.slider")
    slider.wait_for(timeout=30_000)
    slider.evaluate(WATCH)
    box = slider.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.8 * box["width"], y)
    page.mouse.down()
    for move in range(MOVES):
        page.mouse.move(box["x"] + box["width"] * (0.2 + 0.75 * (move * 7 % MOVES) / MOVES), y)
    page.mouse.up()
    page.wait_for_timeout(600)
    lags: list[float] = page.evaluate("window.lags")
    return lags


def release(page: Any, share: float) -> float:
    """Milliseconds from a click on the slider to the server's response, seen as a change of the page's address."""
    box = page.locator("input.slider").bounding_box()
    before = page.url
    start = time.perf_counter()
    page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_function("before => location.href !== before", arg=before, timeout=30_000)
    return 1000 * (time.perf_counter() - start)


def quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"median": round(statistics.median(ordered), 1), "p95": round(p95, 1), "count": len(ordered)}


if __name__ == "__main__":
    main()
