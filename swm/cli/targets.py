"""What several commands share: the experiment they work on, and their result."""

from __future__ import annotations

from typing import Any

from swm.errors import ExperimentError
from swm.workspace.experiments import Experiment
from swm.workspace.names import read_only_message
from swm.workspace.runs import BASELINE, Run

Result = tuple[Any, str]


Entries = dict[str, Any]


def own_experiment(name: str) -> Experiment:
    """An experiment that may be written to."""
    experiment = Experiment.open(name)
    if experiment.read_only:
        raise ExperimentError(read_only_message(name))
    return experiment


def comparison_table(experiment: Experiment, run: Run) -> str:
    """The original and a run side by side, as text."""
    from swm.reporting.compare import compare
    from swm.reporting.table import table

    return table([row for row in compare(experiment) if row["run"] in (BASELINE, run.name)])
