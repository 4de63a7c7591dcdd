"""What several commands share: their experiment, and the form of their result."""

from __future__ import annotations

from typing import Any

from swm.errors import ExperimentError
from swm.workspace.controls import control_of
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE, Run

Result = tuple[Any, str]  # for --json, and as text
Entries = dict[str, Any]  # of run.json


def own_experiment(name: str) -> Experiment:
    """An experiment of the user's own; raises ExperimentError if it is read-only."""
    experiment = Experiment.open(name)
    if experiment.read_only:
        raise ExperimentError(experiment.why_read_only())
    return experiment


def compared_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of the original, the run and its control, with verdicts."""
    from swm.reporting.compare import compare
    from swm.reporting.judged import judged

    control = control_of(run)
    names = (BASELINE, run.name, control.name if control else None)
    return judged([row for row in compare(run.experiment) if row["run"] in names])


def comparison_table(run: Run) -> str:
    """The original, a run and its control side by side, as text."""
    from swm.reporting.table import table

    return table(compared_rows(run))
