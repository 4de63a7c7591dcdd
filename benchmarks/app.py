"""How long people wait for the app: home with a thousand runs, alone and with ten browsers; a plan; the bundled model.

    python benchmarks/app.py

In a home of its own. Needs chromium and playwright for the pages. Prints one JSON object: seconds, the best of several
where other work on the machine could only add.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from swm.models.load import load_model
from swm.models.locate import model_folder
from swm.plan import MergePlan, Window
from swm.search.find import threshold_path
from swm.settings import ExperimentSettings
from swm.workspace.experiments import Experiment, list_experiments
from swm.workspace.state import State, this_process
from tools.running import CHROMIUM_FLAGS, running_app

BROWSERS, ROUNDS = 10, 3


def main() -> None:
    """Measure all of it and print it."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SWM_HOME"] = folder
        thousand_runs()
        found = {"plan_at, 80 layers": plan_seconds(), "list a thousand runs": list_seconds()}
        found |= page_seconds()
        model_folder("smollm2-135m")  # converted once
        found["load the bundled model"] = best(lambda: load_model("smollm2-135m"))
    print(json.dumps({name: round(seconds, 5) for name, seconds in found.items()}))


def best(work: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Seconds of the fastest of several."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def thousand_runs() -> None:
    """100 experiments with ten merged runs each."""
    facts = {"architecture": "LlamaForCausalLM", "layers": 6, "width": 8, "dtype": "float32"}
    facts |= {"parameters": 1000, "parameters_per_layer": 100, "size_bytes": 4000}
    done = State("merge", "done", started=1.0, heartbeat=2.0, **this_process())
    for n in range(100):
        experiment = Experiment.create(f"e{n}", ExperimentSettings("some-model"), facts)
        for k in range(10):
            run = experiment.create_run(f"r{k}", MergePlan(6, (Window(1, 3),)))
            run.remember(merge={"parameters": 800, "size_bytes": 3200})
            run.write_state(done)


def plan_seconds() -> float:
    """A plan from the path of 80 layers, the mean of a hundred thresholds."""
    path = threshold_path(80, lambda above, window: 1 - 0.02 * len(window) - 0.01 * len(above), 0.9)
    return best(lambda: [path.plan_at(0.9 + i / 1000) for i in range(100)]) / 100


def list_seconds() -> float:
    """What home computes of a thousand runs, files read for the first time."""
    from pages.shared.tables import runs_table
    from swm.jobs.child import active_targets

    start = time.perf_counter()
    experiments = list_experiments()[0]
    rows = runs_table(experiments)
    active_targets(experiments)
    assert len(rows) >= 1000
    return time.perf_counter() - start


def page_seconds() -> dict[str, float]:
    """Home asked for by its address, and by a click with ten browsers open; the median browser's best."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with running_app() as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        pages = [browser.new_context(viewport={"width": 1280, "height": 900}).new_page() for _ in range(BROWSERS)]
        for page in pages:
            page.goto(f"{address}/sweeps?experiment=e0")
            page.wait_for_selector("h1", timeout=60_000)
        clicks: list[list[float]] = [[] for _ in pages]
        for page, seconds in [*zip(pages, clicks, strict=True)] * ROUNDS:
            start = time.perf_counter()
            page.get_by_role("link", name="Home", exact=True).click()
            page.wait_for_selector("[data-testid=stDataFrame]", timeout=60_000)
            seconds.append(time.perf_counter() - start)
            page.get_by_role("link", name="Sweeps").click()
            page.wait_for_selector("h1:has-text('Sweeps')", timeout=60_000)

        def home() -> None:
            pages[0].goto(address)
            pages[0].wait_for_selector("text=See redundancy", timeout=60_000)

        asked = best(home)
        browser.close()
    return {"home by its address": asked, "home by a click, ten browsers": statistics.median(map(min, clicks))}


if __name__ == "__main__":
    main()
