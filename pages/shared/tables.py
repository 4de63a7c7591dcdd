"""Tables of the pages, made with pandas from plain rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from swm.compare import STAGES, lines, row_name
from swm.experiments import Experiment
from swm.search import PlanAt


def comparison_table(flat: list[dict[str, Any]]) -> pd.DataFrame:
    """One line for each figure, one column for each row, as text with error bars."""
    return pd.DataFrame.from_dict(dict(lines(flat)), orient="index", columns=[row_name(row) for row in flat])


def runs_table(experiments: list[Experiment]) -> pd.DataFrame:
    """The runs of all experiments, the original left out."""
    rows = [
        {
            "experiment": experiment.name,
            "run": run.name,
            "layers": f"{run.plan.layers_left} of {run.plan.layer_count}",
            "rule": run.plan.rule,
            "stage": STAGES[run.stage],
            "job": run.state().status or "–",
        }
        for experiment in experiments
        for run in experiment.runs()
        if not run.is_baseline
    ]
    return pd.DataFrame(rows)


def trace_table(step: PlanAt) -> pd.DataFrame:
    """Every window tried, in order."""
    return pd.DataFrame(
        {
            "window": [str(trial.window) for trial in step.trace],
            "merged above": [", ".join(map(str, trial.committed)) or "–" for trial in step.trace],
            "similarity": [trial.similarity for trial in step.trace],
            "verdict": ["accepted" if trial.accepted else "rejected" for trial in step.trace],
            "known as": ["upper bound" if trial.at_most else "value" for trial in step.trace],
        }
    )


def similarity_maps(experiments: list[Experiment], layers: int) -> dict[str, Callable[[], dict[str, Any] | None]]:
    """What reads each similarity map of models with so many layers, by "experiment: measure"."""
    return {
        f"{experiment.name}: {name}": lambda experiment=experiment, name=name: experiment.similarity(name)
        for experiment in experiments
        if experiment.layer_count == layers
        for name in experiment.metrics_measured()
    }
