"""Studies: every method at several depths, before and after healing, on one model. Each cell is a run like any other.

A study goes on where it stopped: what a run has is not computed again.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

from swm.errors import ModelError, PlanError
from swm.experiments import BASELINE, Experiment, Run
from swm.grids import OF_RUNS, Cell, Grid
from swm.metrics import Measure
from swm.plan import PLANNERS, MergePlan
from swm.planning import plan_by, plan_for, search
from swm.stages import Progress, evaluate, measure, merge, no_progress, recover_run, time_run


def run_study(
    experiment: Experiment, kind: str, grid: dict[str, Any], progress: Progress = no_progress
) -> dict[str, str]:
    """Run what a grid asks for and is not there yet.

    Args:
        grid: as from `grids.read_grid`.

    Returns:
        The cells that cannot be, with the reason: a method that finds no such plan, a rule that the model does not go
        with.
    """
    if kind in OF_RUNS:
        failed = _study_runs(experiment, Grid.from_dict(grid), progress)
    elif kind == "thresholds":
        failed = _study_thresholds(experiment, grid["rules"], float(grid["from"]), progress)
    else:
        failed = {}
        measures = [Measure(grid["metric"], texts=text) for text in grid["texts"]]
        for place, how in enumerate(measures):
            if not experiment.similarity(how.name):
                measure(experiment, how, _part(progress, place, len(measures), how.texts))
    experiment.save_study(kind, {"failed": failed, "grid": grid})
    return failed


def _study_thresholds(experiment: Experiment, rules: list[str], low: float, progress: Progress) -> dict[str, str]:
    failed = {}
    for place, rule in enumerate(rules):
        try:
            search(experiment, rule, low, progress=_part(progress, place, len(rules), rule))
        except ModelError as error:
            failed[rule] = str(error)
    return failed


def _study_runs(experiment: Experiment, grid: Grid, progress: Progress) -> dict[str, str]:
    cells = grid.cells(experiment.layer_count)
    _score(experiment.run(BASELINE), grid, _part(progress, 0, len(cells) + 1, "original"))
    failed = {}
    for place, cell in enumerate(cells, 1):
        try:
            _run_cell(experiment, cell, grid, _part(progress, place, len(cells) + 1, cell.run))
        except (PlanError, ModelError) as error:
            failed[cell.run] = str(error)
    return failed


def _run_cell(experiment: Experiment, cell: Cell, grid: Grid, progress: Progress) -> None:
    run = _planned(experiment, cell, progress)
    lost = not run.has_model and not _is_scored(run, grid)  # another grid asks for more, and the weights are gone
    if run.stage == "planned" or (run.stage == "merged" and lost):
        merge(run, progress)
    if run.stage == "merged":
        _score(run, grid, progress)
    if cell.recovery and (run.stage == "merged" or lost):
        recover_run(run, cell.recovery, progress)
    _score(run, grid, progress)
    if not grid.keep_models:
        shutil.rmtree(run.model_folder, ignore_errors=True)
        shutil.rmtree(run.folder / "recovery", ignore_errors=True)


def _planned(experiment: Experiment, cell: Cell, progress: Progress) -> Run:
    if (experiment.folder / "runs" / cell.run / "run.json").is_file():
        return experiment.run(cell.run)
    if cell.method in PLANNERS:
        data = plan_by(experiment, cell.method, cell.layers, progress=progress)
        plan, threshold, similarity = MergePlan.from_dict(data), None, data["similarity"]
    else:
        step = plan_for(experiment, layers=cell.layers, rule=cell.method, progress=progress)
        plan, threshold, similarity = step.plan, step.threshold, step.similarity
    return experiment.create_run(cell.run, replace(plan, width=cell.width), threshold, similarity, cell.method)


def _score(run: Run, grid: Grid, progress: Progress) -> None:
    if not _has_scores(run, grid):
        evaluate(run, grid.tasks, grid.limit, progress)
    if grid.time and not run.timing():
        time_run(run, progress=progress)


def _is_scored(run: Run, grid: Grid) -> bool:
    return _has_scores(run, grid) and not (grid.time and not run.timing())


def _has_scores(run: Run, grid: Grid) -> bool:
    scores = run.scores()
    return scores is not None and scores["limit"] == grid.limit and set(grid.tasks) <= set(scores["tasks"])


def _part(progress: Progress, place: int, parts: int, name: str) -> Progress:
    """Progress of one part of several, in thousandths of the whole; it has steps of its own and never goes back."""
    share = 0.0

    def told(done: int, total: int, text: str) -> None:
        nonlocal share
        share = max(share, done / total if total else 0.0)
        progress(round(1000 * (place + share) / parts), 1000, f"{name} ({place + 1} of {parts}): {text}")

    return told
