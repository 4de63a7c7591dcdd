"""Runs that differ only in the seed of their healing, as one row of means whose intervals include the spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from swm.evaluation.paired import CHOICE_LOGPROB, SCORES, has_interval, mean_perplexity, student
from swm.reporting.compare import value_of
from swm.reporting.row import Perplexity, Range, Row, TaskScore
from swm.settings import RecoverySettings
from swm.workspace.experiments import Experiment
from swm.workspace.recipe import recipe_of

SEED = "-seed-"  # in the name of a run that repeats another one's healing


def over_seeds(experiment: Experiment, rows: Sequence[Row]) -> list[tuple[Row, Sequence[Row]]]:
    """The rows of means, each with the rows that it averages: only the first before healing, where all are one model.

    Args:
        rows: of the experiment, as from `flat_rows`.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cell, healing = row.run.partition(SEED)[0], _healing(experiment, row)
        plan = (row.windows, row.rule, row.width, row.control)
        key = (cell, row.stage, *plan, healing and replace(healing, seed=0), *_measured_on(row))
        seeds = (healing.seed,) if healing else ()
        groups.setdefault(key, []).append(replace(row, before_recovery=None, seeds=seeds))
    return [_mean_row(group) for group in groups.values()]


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
    averages = {name: mean_interval([row.averages.get(name) for row in group]) for name in first.averages}
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
    continuous: Any = {name: mean_interval(found) for name, found in entries.items()}
    return {**scores[0], "value": value, "stderr": stderr, **continuous}


def _mean_score(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    over_documents = math.sqrt(statistics.fmean(error**2 for error in errors))  # all answered the same documents
    return statistics.fmean(values), math.hypot(over_documents, _error(values))


def mean_interval(entries: Sequence[Range | None]) -> Range | None:
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
