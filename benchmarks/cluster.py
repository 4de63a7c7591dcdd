"""A sweep and a study on a Ray cluster of two nodes, started from their pages; the second node is killed on the way.

    python benchmarks/cluster.py [--sweep assets/sweeps/smollm2-135m.yaml] [--home FOLDER] [--only study]

The sweep is started by a click, its node is killed while a run is active there, and a new node takes its place. What
ends as interrupted is resumed by a click. Then a study of three models (two methods, the original) is started from its
page, and its node is killed and replaced in the same way. Prints when what happened, and at the end the state of every
run, its seconds, and whether files that were there before a node was lost are still the same. Needs Chromium and Ray.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.cluster import Nodes
from tools.running import CHROMIUM_FLAGS, running_app

GRID = {
    "ratios": [0.2],
    "planners": ["angular", "shortgpt"],
    "rules": [],
    "tasks": "all",
    "limit": 10,
    "heal": [],
    "recovery": {"preset": "quick"},
    "time": False,
    "keep_models": False,
}
START = time.monotonic()


def main() -> None:
    """Run both and print what happened."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", default=str(ROOT / "assets" / "sweeps" / "smollm2-135m.yaml"))
    parser.add_argument("--home", default="")
    parser.add_argument("--only", choices=["sweep", "study"])
    options = parser.parse_args()
    folder = options.home or tempfile.mkdtemp()
    os.environ |= {"SWM_HOME": folder, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    nodes = Nodes()
    try:
        with running_app(SWM_EXECUTOR=nodes.address) as (address, _), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            if options.only != "study":
                the_sweep(page, address, nodes, Path(options.sweep))
            if options.only != "sweep":
                the_study(page, address, nodes)
            browser.close()
    finally:
        nodes.end()
        if not options.home:
            shutil.rmtree(folder)


def the_sweep(page: Any, address: str, nodes: Nodes, file: Path) -> None:
    """From the first click to the last run."""
    from swm.jobs.sweep import Sweep
    from swm.jobs.sweep_file import load_grid
    from swm.workspace.experiments import Experiment

    sweep = Sweep.create(load_grid(file))
    url = f"{address}/sweeps?sweeps_name={sweep.name}"
    click(page, url)

    def active() -> list[Any]:
        names = [cell for cell in sweep.file.cells if cell.state() == "running"]
        return [Experiment.open(cell.experiment).run(cell.run) for cell in names]

    wait_for(lambda: len(active()) > 1, 1800)  # one on each node
    say("sweep: active: " + ", ".join(f"{run.name} ({run.state().stage})" for run in active()))
    time.sleep(20)
    lose(nodes, [run.state().pid for run in active()], Path(os.environ["SWM_HOME"]))
    finish(page, url, sweep)
    for name, state in sweep.states().items():
        say(f"sweep: {name} is {state}")


def the_study(page: Any, address: str, nodes: Nodes) -> None:
    """From the first click to the last model."""
    from swm.settings import ExperimentSettings
    from swm.stages.create import create_experiment

    experiment = create_experiment("study", ExperimentSettings("smollm2-135m"))
    experiment.save_study("methods", {"kind": "methods", "grid": GRID, "failed": {}})
    url = f"{address}/studies?experiment={experiment.name}&studies_kind=methods"
    click(page, url)
    wait_for(lambda: scored(experiment), 1800)
    say(f"study: scored: {', '.join(scored(experiment))}")
    time.sleep(20)
    lose(nodes, [experiment.state().pid], experiment.folder)  # it needs more memory than the head has
    finish(page, url, experiment)
    say(f"study: scored: {', '.join(scored(experiment))}; failed: {experiment.study('methods')['failed']}")


def scored(experiment: Any) -> list[str]:
    return [run.name for run in experiment.runs() if (run.folder / "scores.json").is_file()]


def lose(nodes: Nodes, processes: list[int], folder: Path) -> None:
    """Kill the second node and what ran on it, add another, and look whether results of before are still there."""
    before = {file: file.read_bytes() for file in folder.rglob("scores.json")}
    nodes_of = {pid: node_of(pid) for pid in processes}
    nodes.tell("worker")
    killed = [pid for pid, node in nodes_of.items() if not psutil.pid_exists(node)]
    for pid in killed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # a lost machine takes its work along, not only Ray's part of it
    say(f"the second node is killed, and {len(killed)} of {len(processes)} processes with it")
    nodes.tell("replace")
    same = sum(file.read_bytes() == content for file, content in before.items())
    say(f"a new node has come; of {len(before)} results of before, {same} are the same")


def node_of(pid: int) -> int:
    """The Ray process of the node that started a process."""
    return next(parent.pid for parent in psutil.Process(pid).parents() if parent.name() == "raylet")


def finish(page: Any, url: str, target: Any) -> None:
    """Wait for the end; what was interrupted is resumed, at most five times."""
    for _ in range(5):
        wait_for(lambda: not target.state().active, 5400)
        say(f"{target.name}: {target.state().status} {target.state().error}")
        if target.state().status == "done":
            return
        click(page, url)


def click(page: Any, url: str) -> None:
    """Start or resume on a page, as a user would."""
    page.goto(url)
    page.wait_for_selector("h1", timeout=120_000)
    button = page.get_by_role("button").filter(has_text="this s").last
    button.wait_for(timeout=120_000)
    say(f"click on: {button.inner_text()}")
    button.click()
    page.wait_for_timeout(10_000)


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(1)
    raise TimeoutError(f"It did not happen within {seconds:.0f} seconds.")


def say(what: str) -> None:
    print(f"{time.monotonic() - START:6.0f} s  {what}", flush=True)


if __name__ == "__main__":
    main()
