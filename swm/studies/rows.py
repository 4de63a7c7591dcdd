"""The table of a study: every method at every depth, means over seeds, and each method's difference from one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from swm.reporting.compare import compare, flat_rows
from swm.reporting.differences import compared, measured
from swm.reporting.judged import judged_group
from swm.reporting.row import Row
from swm.reporting.seeds import over_seeds
from swm.workspace.experiments import Experiment


def study_rows(experiment: Experiment, against: str | None = None) -> list[Row]:
    """Rows of the original and of the studies' runs, the deepest cut last, equal depths sorted by perplexity.

    Runs that differ only in the seed of their healing form one row with their means; its intervals include the spread
    over seeds. `against` has the differences from a method's model with equal parameters (the nearest depth if there
    are several) at the same stage; None if there is no such model, and for the method itself. The others and the
    verdict are as from `judged`; the control has the same seeds.

    Args:
        against: the method to compare the others with; by default `best` if it was studied, otherwise the first.
    """
    table = study_groups(experiment)
    methods = [row.method for row, _ in table if row.method != "original"]
    against = against or ("best" if "best" in methods else next(iter(methods), "original"))
    apart = experiment.model_facts["parameters_per_layer"] / 2
    rows = {row.run: row for row in compare(experiment)}  # also runs that no study made
    results = [measured(group) for _, group in table]
    finished = []
    for (row, group), own in zip(table, results, strict=True):
        closest = _closest(row, table, str(against), apart)
        difference = None if closest is None else compared(results[closest], own)
        against_it = difference if difference and (difference.scores or difference.perplexity) else None
        row = replace(row, against=against_it, against_method=against)
        finished.append(judged_group(row, group, own, rows))
    return finished


def _closest(row: Row, table: Sequence[tuple[Row, Sequence[Row]]], against: str, apart: float) -> int | None:
    """The place of another method's row of the nearest size, at the same stage; None if all are a layer or more off."""
    candidates = [
        (abs(other.layers - row.layers), difference, place)
        for place, (other, _) in enumerate(table)
        if other.method == against != row.method and other.stage == row.stage
        if (difference := abs(other.parameters - row.parameters)) < apart
    ]
    return min(candidates)[-1] if candidates else None


def study_groups(experiment: Experiment) -> list[tuple[Row, Sequence[Row]]]:
    """The rows of means of `study_rows` in their order, each with the rows of `compare` that it averages."""
    rows = [row for row in flat_rows(compare(experiment)) if row.method]
    return sorted(over_seeds(experiment, rows), key=lambda row_and_group: _order(row_and_group[0]))


def _order(row: Row) -> tuple[Any, ...]:
    return -row.layers, row.stage == "recovered", row.perplexity or math.inf
