"""The cells of a study as far as they are known. No torch."""

from __future__ import annotations

from swm.studies.grids import Cell, Grid
from swm.workspace.experiments import Experiment


def cells_of(experiment: Experiment, kind: str, grid: Grid) -> list[Cell]:
    """The cells of a study's grid; those of a speed or a loss only once the study has found their depths."""
    return grid.cells(experiment.model_facts, experiment.cost(), (experiment.study(kind) or {}).get("within"))
