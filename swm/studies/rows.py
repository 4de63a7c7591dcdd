"""The table of a study: every method at every depth, means over seeds, and each method's difference from one."""

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
    """Rows of the original and of the studies' runs, the deepest cut last, equal depths sorted by perplexity.

    Args:
        against: the method to compare the others with; by default `best` if it was studied, otherwise the first.

    Returns:
        Rows as from `compare`, flat. Runs that differ only in the seed of their healing form one row with their means;
        its intervals include the spread over seeds. `seeds` are the training seeds, `averages` the average score of
        each run, `runs` the names of all runs in the row. `against` has the `method`, and the `difference` of the
        average from that method's model with equal parameters (the nearest depth if there are several) at the same
        stage, with its 95 % interval `low` to `high`, over the `documents` that both answered and over the seeds. None
        if there is no such model, and for the method itself.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in flat_rows(compare(experiment)):
        if row["method"]:
            cell, healing = row["run"].partition(SEED)[0], _healing(experiment, row)
            seeds = [healing.seed] if healing else []
            key = (cell, row["stage"], healing and replace(healing, seed=0), *_measured_on(row))
            groups.setdefault(key, []).append({**row, "before_recovery": None, "seeds": seeds})
    table = [_mean_row(group) for group in groups.values()]
    table.sort(key=lambda row_and_group: _order(row_and_group[0]))
    methods = [row["method"] for row, _ in table if row["method"] != "original"]
    against = against or ("best" if "best" in methods else next(iter(methods), "original"))
    references = [(row, _answers(group)) for row, group in table if row["method"] == against]
    tolerance = experiment.model_facts["parameters_per_layer"] / 2
    for row, group in table:
        candidates = [
            (abs(other["layers"] - row["layers"]), abs(other["parameters"] - row["parameters"]), place)
            for place, (other, _) in enumerate(references)
            if other["stage"] == row["stage"] and abs(other["parameters"] - row["parameters"]) < tolerance
        ]
        row["against"] = None
        if candidates and row["method"] != against:
            other, answers = references[min(candidates)[-1]]
            over_seeds = math.hypot(_error(row["averages"]), _error(other["averages"]))
            row["against"] = _against(against, paired(answers, _answers(group)), over_seeds)
    return [row for row, _ in table]


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return -row["layers"], row["stage"] == "recovered", row["perplexity"] or math.inf


def _answers(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return mean_answers([documents_of(row) for row in group])


def _against(method: str, compared: list[Paired], over_seeds: float) -> dict[str, Any] | None:
    if not compared:
        return None
    last = compared[-1]  # the average, if there are several tasks
    below, above = (math.hypot(end - last.difference, 1.96 * over_seeds) for end in (last.low, last.high))
    interval = {"low": last.difference - below, "high": last.difference + above}
    return {"method": method, "difference": last.difference, **interval, "documents": last.documents}


def _healing(experiment: Experiment, row: dict[str, Any]) -> RecoverySettings | None:
    return recipe_of(experiment.run(row["run"])).recovery if row["stage"] == "recovered" else None


def _measured_on(row: dict[str, Any]) -> tuple[Any, ...]:
    documents = tuple((task, score["documents"]) for task, score in row["scores"].items())
    return documents, tuple(row["perplexities"])


def _mean_row(group: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], Sequence[dict[str, Any]]]:
    """A row of means over the seeds, whose errors combine those of documents or texts with the spread over seeds.

    Returns:
        The row, and the rows that it averages: only the first before healing, because all are the same model then.
    """
    first, runs = group[0], [row["run"] for row in group]
    if first["stage"] != "recovered":
        group = group[:1]
    averages = [row["average"] for row in group if row["average"] is not None]
    row = {**first, "runs": runs, "averages": averages}
    row["seeds"] = [seed for member in group for seed in member["seeds"]]
    if len(group) < 2 or not first["perplexities"]:
        return row, group
    row["perplexities"] = {
        text: _mean_perplexity([member["perplexities"][text] for member in group]) for text in first["perplexities"]
    }
    row["perplexity"] = next(perplexity["value"] for perplexity in row["perplexities"].values())
    row["scores"] = {
        task: {**score, **_mean_score([(m["scores"][task]["value"], m["scores"][task]["stderr"]) for m in group])}
        for task, score in first["scores"].items()
    }
    if averages:
        mean = _mean_score([(member["average"], member["average_stderr"]) for member in group])
        row["average"], row["average_stderr"] = mean["value"], mean["stderr"]
    return row, group


def _mean_score(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    values, errors = zip(*scores, strict=True)
    over_documents = math.sqrt(statistics.fmean(error**2 for error in errors))  # all answered the same documents
    return {"value": statistics.fmean(values), "stderr": math.hypot(over_documents, _error(values))}


def _mean_perplexity(perplexities: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The geometric mean, because a perplexity is itself the exponential of a mean."""
    logs = [{name: math.log(entry[name]) for name in ("value", "low", "high")} for entry in perplexities]
    over_seeds = 1.96 * _error([entry["value"] for entry in logs])
    value = statistics.fmean(entry["value"] for entry in logs)
    below, above = (
        math.hypot(statistics.fmean(abs(entry[end] - entry["value"]) for entry in logs), over_seeds)
        for end in ("low", "high")
    )
    return {
        **perplexities[0],
        "value": math.exp(value),
        "low": math.exp(value - below),
        "high": math.exp(value + above),
    }


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean over seeds; 0 for a single seed, where it is unknown."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
