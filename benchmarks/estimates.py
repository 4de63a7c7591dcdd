"""Estimates of time held against what the stages take: every stage on the bundled model, in a home of its own.

Each estimate is asked for before its stage runs, so the first ones know only how long a forward pass takes, later ones
also what earlier jobs reached. Prints a row for each stage: estimated and measured seconds, and their ratio.

    python benchmarks/estimates.py [--quick]     # half an hour on two cores; --quick: without path, SLEB and healing
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from swm.plan import MergePlan, Window
from swm.settings import preset_settings
from swm.workspace.estimate import SIZES, estimate_run, path_seconds, planner_seconds, stage_needs
from swm.workspace.experiments import Experiment

PLAN = MergePlan(30, (Window(22, 23), Window(26, 27)))
RECOVERY = preset_settings("quick", steps=30)
NAME = "estimates"


def swm(*arguments: str) -> float:
    """Seconds that a command takes, its start included."""
    start = time.time()
    subprocess.run([sys.executable, "-m", "swm", *arguments], check=True, capture_output=True)
    return time.time() - start


def run_seconds(stage: str, limit: int, tasks: tuple[str, ...] = tuple(SIZES), plan: MergePlan = PLAN) -> float:
    experiment = Experiment.open(NAME)
    recovery = RECOVERY if stage == "heal" else None
    found = estimate_run(
        experiment.model_facts, experiment.cost(), plan, recovery, limit, experiment.folder, tasks, evaluations=1
    )
    return found.seconds[stage]


def stage_seconds(stage: str) -> float | None:
    experiment = Experiment.open(NAME)
    needs = stage_needs(experiment.model_facts, experiment.cost(), PLAN, RECOVERY, 100, 1280)
    return next(need.seconds for need in needs if need.stage == stage)


def search_seconds(planner: str = "") -> float | None:
    experiment = Experiment.open(NAME)
    if not planner:
        return path_seconds(experiment.model_facts, experiment.cost(), 1280)
    return planner_seconds(experiment.model_facts, experiment.cost(), 1280, planner, 24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    os.environ["SWM_HOME"] = tempfile.mkdtemp()
    swm("create", NAME, "--model", "smollm2-135m")
    swm("measure", NAME)  # also times a token, which all estimates need
    whole = MergePlan(30)
    stages: dict[str, tuple[Callable[[], float | None], list[str]]] = {
        "measure": (lambda: stage_seconds("measure"), ["measure", NAME, "--metric", "cosine"]),
        "search, one threshold": (
            lambda: stage_seconds("search, one threshold"), ["plan", NAME, "--threshold", "0.9", "--rule", "mean"],
        ),
        **{
            f"plan by {planner}, 24 layers": (
                lambda planner=planner: search_seconds(planner), ["plan", NAME, "--planner", planner, "--layers", "24"],
            )
            for planner in ("shortgpt", "angular", "perplexity", *(() if quick else ("sleb",)))
        },
        "evaluate, 7 tasks x 10": (lambda: run_seconds("evaluate", 10, plan=whole), [
            "evaluate", NAME, "baseline", "--limit", "10"]),
        "evaluate, winogrande x 300": (lambda: run_seconds("evaluate", 300, ("winogrande",), whole), [
            "evaluate", NAME, "baseline", "--limit", "300", "--tasks", "winogrande"]),
        "evaluate, 7 tasks x 50": (lambda: run_seconds("evaluate", 50, plan=whole), [
            "evaluate", NAME, "baseline", "--limit", "50"]),
        "merge": (lambda: run_seconds("merge", 10), ["merge", NAME, "a", "--windows", "22-23,26-27"]),
        "merge --stream": (lambda: stage_seconds("merge --stream"), [
            "merge", NAME, "b", "--windows", "22-23,26-27", "--stream"]),
        "evaluate merged, 7 x 50": (lambda: run_seconds("evaluate", 50), ["evaluate", NAME, "a", "--limit", "50"]),
        "time": (lambda: run_seconds("time", 10), ["time", NAME, "a"]),
    }  # fmt: skip
    if not quick:
        stages["heal, 30 steps"] = (lambda: run_seconds("heal", 10), ["recover", NAME, "a", "--steps", "30"])
        stages["heal again, 30 steps"] = (lambda: run_seconds("heal", 10), ["recover", NAME, "b", "--steps", "30"])
        stages["search, whole path"] = (search_seconds, ["search", NAME])
    for stage, (estimate, command) in stages.items():
        estimated = estimate() or 0.0
        took = swm(*command)
        row = {"stage": stage, "estimated_s": round(estimated, 1), "took_s": round(took, 1)}
        print(json.dumps({**row, "ratio": round(estimated / took, 2)}), flush=True)


if __name__ == "__main__":
    main()
