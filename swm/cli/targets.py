"""What several commands share: their experiment, and the form of their result."""

from __future__ import annotations

from typing import Any

from swm.errors import ExperimentError
from swm.workspace.experiments import Experiment
from swm.workspace.names import read_only_message
from swm.workspace.runs import BASELINE, Run

Result = tuple[Any, str]  # for --json, and as text
Entries = dict[str, Any]  # of run.json


def own_experiment(name: str) -> Experiment:
    """An experiment of the user's own; raises ExperimentError if it is read-only."""
    experiment = Experiment.open(name)
    if experiment.read_only:
        raise ExperimentError(read_only_message(name))
    return experiment


def comparison_table(experiment: Experiment, run: Run) -> str:
    """The original and a run side by side, as text."""
    from swm.reporting.compare import compare
    from swm.reporting.table import table

    return table([row for row in compare(experiment) if row["run"] in (BASELINE, run.name)])
