"""The table of a study: every method at every depth, means over seeds, and each method's difference from one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from swm.evaluation.paired import CHOICE_LOGPROB, SCORES, has_interval, mean_perplexity, student
from swm.reporting.compare import compare, flat_rows, value_of
from swm.reporting.differences import compared, measured
from swm.reporting.row import Perplexity, Range, Row, TaskScore
from swm.reporting.verdict import verdict
from swm.settings import RecoverySettings
from swm.studies.grids import SEED
from swm.workspace.experiments import Experiment
from swm.workspace.recipe import recipe_of
from swm.workspace.runs import BASELINE


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
    original = measured([rows[BASELINE]])
    finished = []
    for (row, group), own in zip(table, results, strict=True):
        closest = _closest(row, table, str(against), apart)
        difference = None if closest is None else compared(results[closest], own)
        controls = [rows[member.control_run] for member in group if member.control_run]
        row = replace(
            row,
            against=difference if difference and (difference.scores or difference.perplexity) else None,
            against_method=against,
            against_original=compared(original, own),
            against_control=compared(measured(controls), own) if len(controls) == len(group) else None,
        )
        finished.append(replace(row, verdict=verdict(row)))
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
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in flat_rows(compare(experiment)):
        if row.method:
            cell, healing = row.run.partition(SEED)[0], _healing(experiment, row)
            seeds = [healing.seed] if healing else []
            key = (cell, row.stage, healing and replace(healing, seed=0), *_measured_on(row))
            groups.setdefault(key, []).append(replace(row, before_recovery=None, seeds=tuple(seeds)))
    table = [_mean_row(group) for group in groups.values()]
    return sorted(table, key=lambda row_and_group: _order(row_and_group[0]))


def _order(row: Row) -> tuple[Any, ...]:
    return -row.layers, row.stage == "recovered", row.perplexity or math.inf


def _healing(experiment: Experiment, row: Row) -> RecoverySettings | None:
    return recipe_of(experiment.run(row.run)).recovery if row.stage == "recovered" else None


def _measured_on(row: Row) -> tuple[Any, ...]:
    documents = tuple((task, score["documents"]) for task, score in row.scores.items())
    return documents, tuple(row.perplexities)


def _mean_row(group: Sequence[Row]) -> tuple[Row, Sequence[Row]]:
    """A row of means over the seeds, whose errors combine those of documents or texts with the spread over seeds.

    Returns:
        The row, and the rows that it averages: only the first before healing, because all are the same model then.
    """
    first, runs = group[0], tuple(row.run for row in group)
    if first.stage != "recovered":
        group = group[:1]
    by_seed = tuple(row.average for row in group if row.average is not None)
    seeds = tuple(seed for member in group for seed in member.seeds)
    row = replace(first, runs=runs, average_by_seed=by_seed, seeds=seeds)
    if len(group) < 2 or not first.perplexities:
        return row, group
    perplexities = {text: _mean_perplexity([row.perplexities[text] for row in group]) for text in first.perplexities}
    averages = {name: _mean_interval([row.averages.get(name) for row in group]) for name in first.averages}
    errors = [row.average_stderr for row in group if row.average_stderr is not None]
    mean, error = _mean_score(by_seed, errors) if by_seed else (None, None)
    return replace(
        row,
        perplexities=perplexities,
        perplexity=next(entry["value"] for entry in perplexities.values()),
        scores={task: _mean_of_task([row.scores[task] for row in group]) for task in first.scores},
        averages=averages,
        average_choice_logprob=value_of(averages.get(CHOICE_LOGPROB)),
        average=mean,
        average_stderr=error,
    ), group


def _mean_of_task(scores: Sequence[TaskScore]) -> TaskScore:
    value, stderr = _mean_score([score["value"] for score in scores], [score["stderr"] for score in scores])
    entries: Any = {name: [score.get(name) for score in scores] for name in SCORES[1:]}
    continuous: Any = {name: _mean_interval(found) for name, found in entries.items()}
    return {**scores[0], "value": value, "stderr": stderr, **continuous}


def _mean_score(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    over_documents = math.sqrt(statistics.fmean(error**2 for error in errors))  # all answered the same documents
    return statistics.fmean(values), math.hypot(over_documents, _error(values))


def _mean_interval(entries: Sequence[Range | None]) -> Range | None:
    """The mean of a continuous score over seeds; None if a run lacks it."""
    known = [entry for entry in entries if entry]
    if len(known) < len(entries):
        return None
    values = [entry["value"] for entry in known]
    over_documents = statistics.fmean((entry["high"] - entry["low"]) / 2 for entry in known)
    value, reach = statistics.fmean(values), math.hypot(over_documents, _over_seeds(values))
    return {"value": value, "low": value - reach, "high": value + reach}


def _mean_perplexity(perplexities: Sequence[Perplexity]) -> Perplexity:
    """The geometric mean, because a perplexity is itself the exponential of a mean."""
    mean: Perplexity = mean_perplexity(perplexities)
    if not has_interval(mean):
        return mean
    over_seeds = _over_seeds([math.log(entry["value"]) for entry in perplexities])
    below, above = (math.hypot(math.log(mean[end] / mean["value"]), over_seeds) for end in ("low", "high"))
    return {**mean, "low": mean["value"] * math.exp(-below), "high": mean["value"] * math.exp(above)}


def _over_seeds(values: Sequence[float]) -> float:
    """Half the width of Student's 95 % interval of the mean over seeds; 0 for a single seed."""
    if len(values) < 2:
        return 0.0
    low, high, _ = student(values)
    return (high - low) / 2


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean over seeds; 0 for a single seed, where it is unknown."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
