"""How long a study takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swm.plan import MergePlan, WidthCut, Window
from swm.studies.grids import Grid
from swm.workspace.controls import CONTROL
from swm.workspace.estimate import estimate_run


def study_seconds(facts: dict[str, Any], cost: dict[str, Any] | None, grid: Grid, folder: Path) -> float:
    """Seconds for all cells of a new study, without the planners' searches; 0 if unknown."""
    total, timed = 0.0, set[tuple[int, WidthCut]]()
    for cell in grid.cells(facts, cost):
        dropped = facts["layers"] - cell.layers
        plan = MergePlan(facts["layers"], (Window(0, dropped),) if dropped else ())
        control = cell.method == CONTROL  # neither scored before healing nor timed
        evaluations = 2 if cell.recovery and not control else 1
        needs = estimate_run(facts, cost, plan, cell.recovery, grid.limit, folder, len(grid.tasks), evaluations)
        shape = (cell.layers, cell.width)
        if not grid.time or control or shape in timed:
            total -= needs.seconds.get("time", 0)
        else:
            timed.add(shape)
        total += needs.total_seconds
    return total
