"""The table of a study: every method at every depth, means over seeds, and the distance of each to one of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from swm.evaluation.paired import Paired, mean_answers, paired
from swm.reporting.compare import compare, documents_of, flat_rows
from swm.settings import RecoverySettings
from swm.studies.grids import SEED
from swm.workspace.experiments import Experiment
from swm.workspace.recipe import recipe_of


def study_rows(experiment: Experiment, against: str | None = None) -> list[dict[str, Any]]:
    """Rows of the original and of the runs of studies, the deepest cut last; of equal depth in order of perplexity.

    Args:
        against: the method that others are compared with; `best` where it was studied, else the first.

    Returns:
        Rows as from `compare`, flat. What was healed with several seeds, and alike but for them, is one row: the means,
        their intervals with the spread over seeds in them. `seeds` are those of the training, `averages` the average
        score of each, `runs` all the runs that the row stands for. With `against`: `method`, and the `difference` of
        the average to that method's model of as many parameters (of several the one of nearest depth) at the same
        stage, with its 95 % interval `low` to `high`, over the `documents` that both answered and the seeds. None where
        there is no such model, and for the method itself.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in flat_rows(compare(experiment)):
        if row["method"]:
            cell, healing = row["run"].partition(SEED)[0], _healing(experiment, row)
            seeds = [healing.seed] if healing else []
            key = (cell, row["stage"], healing and replace(healing, seed=0), *_measured_on(row))
            groups.setdefault(key, []).append({**row, "before_recovery": None, "seeds": seeds})
    found = [_mean_row(group) for group in groups.values()]
    found.sort(key=lambda one: _order(one[0]))
    methods = [row["method"] for row, _ in found if row["method"] != "original"]
    against = against or ("best" if "best" in methods else next(iter(methods), "original"))
    known = [(row, _answers(group)) for row, group in found if row["method"] == against]
    near = experiment.model_facts["parameters_per_layer"] / 2
    for row, group in found:
        alike = [
            (abs(other["layers"] - row["layers"]), abs(other["parameters"] - row["parameters"]), place)
            for place, (other, _) in enumerate(known)
            if other["stage"] == row["stage"] and abs(other["parameters"] - row["parameters"]) < near
        ]
        row["against"] = None
        if alike and row["method"] != against:
            other, answers = known[min(alike)[-1]]
            over_seeds = math.hypot(_error(row["averages"]), _error(other["averages"]))
            row["against"] = _against(against, paired(answers, _answers(group)), over_seeds)
    return [row for row, _ in found]


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return -row["layers"], row["stage"] == "recovered", row["perplexity"] or math.inf


def _answers(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return mean_answers([documents_of(row) for row in group])


def _against(method: str, compared: list[Paired], over_seeds: float) -> dict[str, Any] | None:
    if not compared:
        return None
    last = compared[-1]  # the average, where there are several tasks
    below, above = (math.hypot(end - last.difference, 1.96 * over_seeds) for end in (last.low, last.high))
    found = {"difference": last.difference, "low": last.difference - below, "high": last.difference + above}
    return {"method": method, **found, "documents": last.documents}


def _healing(experiment: Experiment, row: dict[str, Any]) -> RecoverySettings | None:
    return recipe_of(experiment.run(row["run"])).recovery if row["stage"] == "recovered" else None


def _measured_on(row: dict[str, Any]) -> tuple[Any, ...]:
    documents = tuple((task, score["documents"]) for task, score in row["scores"].items())
    return documents, tuple(row["perplexities"])


def _mean_row(group: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], Sequence[dict[str, Any]]]:
    """The means over the seeds, each with an error from its own (documents or texts) and the spread over seeds.

    Returns:
        With the rows that it is of. Before healing all are the same model: the first.
    """
    first, runs = group[0], [row["run"] for row in group]
    if first["stage"] != "recovered":
        group = group[:1]
    averages = [row["average"] for row in group if row["average"] is not None]
    row = {**first, "runs": runs, "averages": averages}
    row["seeds"] = [seed for one in group for seed in one["seeds"]]
    if len(group) < 2 or not first["perplexities"]:
        return row, group
    row["perplexities"] = {
        text: _mean_perplexity([one["perplexities"][text] for one in group]) for text in first["perplexities"]
    }
    row["perplexity"] = next(one["value"] for one in row["perplexities"].values())
    row["scores"] = {
        task: {**score, **_mean_score([(one["scores"][task]["value"], one["scores"][task]["stderr"]) for one in group])}
        for task, score in first["scores"].items()
    }
    if averages:
        mean = _mean_score([(one["average"], one["average_stderr"]) for one in group])
        row["average"], row["average_stderr"] = mean["value"], mean["stderr"]
    return row, group


def _mean_score(found: Sequence[tuple[float, float]]) -> dict[str, float]:
    values, errors = zip(*found, strict=True)
    over_documents = math.sqrt(statistics.fmean(error**2 for error in errors))  # all answered the same ones
    return {"value": statistics.fmean(values), "stderr": math.hypot(over_documents, _error(values))}


def _mean_perplexity(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The geometric mean, as perplexities are means of logarithms themselves."""
    logs = [{name: math.log(one[name]) for name in ("value", "low", "high")} for one in found]
    over_seeds = 1.96 * _error([one["value"] for one in logs])
    value = statistics.fmean(one["value"] for one in logs)
    below, above = (
        math.hypot(statistics.fmean(abs(one[end] - one["value"]) for one in logs), over_seeds)
        for end in ("low", "high")
    )
    return {**found[0], "value": math.exp(value), "low": math.exp(value - below), "high": math.exp(value + above)}


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean over seeds; 0 for a single one, which says nothing of it."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
