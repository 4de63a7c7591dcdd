"""How long a study takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swm.plan import MergePlan, WidthCut, Window
from swm.registry import PLANNERS
from swm.reporting.glossary import method_name
from swm.settings import preset_settings
from swm.studies.grids import Grid, TextsGrid, ThresholdGrid
from swm.workspace.controls import CONTROL
from swm.workspace.estimate import estimate_run, path_seconds, planner_seconds, profile_seconds, stage_needs


def whole_study_seconds(
    facts: dict[str, Any],
    cost: dict[str, Any] | None,
    grid: Grid | ThresholdGrid | TextsGrid,
    folder: Path,
    tokens: int,
) -> tuple[float, list[str]]:
    """Seconds of a new study of any kind, 0 if nothing was timed; and in words what is not counted.

    Args:
        tokens: of the calibration text.
    """
    if isinstance(grid, ThresholdGrid):
        return thresholds_seconds(facts, cost, grid, folder, tokens), []
    if isinstance(grid, TextsGrid):
        return texts_seconds(facts, cost, grid, tokens), []
    searching, unknown = search_seconds(facts, cost, grid, tokens)
    missing = [f"the search by {method_name(name)}" for name in unknown]
    missing += ["the plans within a loss"] if grid.loss else []
    missing += ["the plans of a size"] if len(grid.own_depths(facts)) > len(grid.loss) else []
    return searching + study_seconds(facts, cost, grid, folder), missing


def study_seconds(facts: dict[str, Any], cost: dict[str, Any] | None, grid: Grid, folder: Path) -> float:
    """Seconds for all cells of a new study, without the planners' searches; 0 if unknown."""
    total, timed = 0.0, set[tuple[int, WidthCut]]()
    for cell in grid.cells(facts, cost):
        dropped = facts["layers"] - cell.layers
        plan = MergePlan(facts["layers"], (Window(0, dropped),) if dropped else ())
        control = cell.method == CONTROL  # neither scored before healing nor timed
        evaluations = 2 if cell.recovery and not control else 1
        needs = estimate_run(facts, cost, plan, cell.recovery, grid.limit, folder, grid.tasks, evaluations)
        shape = (cell.layers, cell.width)
        if not grid.time or control or shape in timed:
            total -= needs.seconds.get("time", 0)
        else:
            timed.add(shape)
        total += needs.total_seconds + evaluations * profile_seconds(facts, cost, len(grid.abilities), grid.requests)
    return total


def search_seconds(
    facts: dict[str, Any], cost: dict[str, Any] | None, grid: Grid, tokens: int
) -> tuple[float, list[str]]:
    """Seconds of the searches of a new study, and the methods whose search cannot be foretold.

    Args:
        tokens: of the calibration text.
    """
    total, unknown = 0.0, list[str]()
    cells = dict.fromkeys((cell.method, cell.layers) for cell in grid.cells(facts, cost) if cell.method != CONTROL)
    for method, layers in cells:
        if method in PLANNERS and layers < facts["layers"]:
            seconds = planner_seconds(facts, cost, tokens, method, layers)
            total += seconds or 0
            unknown += [] if seconds or method in unknown else [method]
    rules = {method for method, _ in cells if method not in PLANNERS}
    return total + len(rules) * (path_seconds(facts, cost, tokens) or 0), unknown


def thresholds_seconds(
    facts: dict[str, Any], cost: dict[str, Any] | None, grid: ThresholdGrid, folder: Path, tokens: int
) -> float:
    """Seconds of a new study of thresholds; 0 if unknown. Without `from`, searches are short, and are left out."""
    plan = MergePlan(facts["layers"], (Window(0, 1),))
    needs = estimate_run(facts, cost, plan, None, grid.limit, folder, [grid.task], evaluations=1)
    scored = len(grid.rules) * len(grid.scored_at) * needs.seconds.get("evaluate", 0)
    return scored + (len(grid.rules) * (path_seconds(facts, cost, tokens) or 0) if grid.low else 0)


def texts_seconds(facts: dict[str, Any], cost: dict[str, Any] | None, grid: TextsGrid, tokens: int) -> float:
    """Seconds of a new study of texts; 0 if unknown."""
    plan = MergePlan(facts["layers"], (Window(0, 1),))
    measure = stage_needs(facts, cost, plan, preset_settings("quick"), None, tokens)[0]
    return len(grid.texts) * (measure.seconds or 0)
