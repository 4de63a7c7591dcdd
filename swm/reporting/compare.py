"""A row for each run of an experiment: what it is, its scores, its difference from the original."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from swm.errors import ExperimentError
from swm.evaluation.paired import CHOICE_LOGPROB, SCORES, scored
from swm.evaluation.task_names import CHANCE
from swm.reporting.names import ORIGINAL, healed_by, row_name, text_name
from swm.reporting.row import Perplexity, Range, Row, TaskScore
from swm.workspace.controls import control_of
from swm.workspace.experiments import Experiment
from swm.workspace.origin import BY_THRESHOLD
from swm.workspace.runs import BASELINE, Run
from swm.workspace.targets import parameters_of

SPEED = ("tokens_per_second", "latency_ms", "peak_memory_bytes")


def compare(experiment: Experiment) -> list[Row]:
    """One row for each run, the original first.

    Deltas compare perplexities of the same text, averages over the same documents of the same tasks, and speed and
    memory with the original as measured in turn with the run.
    """
    rows = [row for run in experiment.runs() if (row := run.read_unless_gone(_row_of))]
    if not experiment.is_there():
        raise ExperimentError(f"Experiment {experiment.name} was deleted or renamed. Choose another one.")
    return [_with_deltas(row, rows[0]) for row in rows]


def is_above_chance(score: TaskScore) -> bool:
    """Whether the 95 % interval of a task's accuracy is above that of guessing."""
    chance = score.get("chance")
    return chance is not None and bool(score["value"] - 1.96 * score["stderr"] > chance)


def _with_deltas(row: Row, original: Row) -> Row:
    """The row, and the one before recovery in it, with differences from the original and reasons for missing ones."""
    deltas, reasons = _deltas(row, original)
    return replace(
        row,
        deltas=deltas,
        not_compared=tuple(reasons),
        tasks_above_chance=tuple(task for task, score in original.scores.items() if is_above_chance(score)),
        before_recovery=row.before_recovery and _with_deltas(row.before_recovery, original),
    )


def _deltas(row: Row, original: Row) -> tuple[dict[str, Any], list[str]]:
    """The differences from the original, and a sentence for each that is missing."""
    names = ("layers", "parameters", "size_bytes")
    deltas = {name: _difference(getattr(row, name), getattr(original, name)) for name in names}
    timed_with = row.timed_with or {name: getattr(original, name) for name in SPEED}
    deltas |= {name: _difference(getattr(row, name), timed_with.get(name)) for name in SPEED}
    deltas |= dict.fromkeys(("perplexity", "average"))
    reasons = []
    if text := row.perplexity_text:
        same = original.perplexities.get(text)
        if same is None:
            reasons.append(f"The original's perplexity on {text_name(text)} was not measured.")
        elif not same_text(same, row.perplexities[text]):
            reasons.append(f"The original's perplexity was measured on another version or length of {text}.")
        else:
            deltas["perplexity"] = _difference(row.perplexity, same["value"])
    if row.scores and documents_key(row) == documents_key(original):
        deltas["average"] = _difference(row.average, original.average)
    elif row.scores:
        reasons.append(f"Averages are not compared: {_mismatch(row, original)}.")
    return deltas, reasons


def same_text(first: Perplexity, second: Perplexity) -> bool:
    """Whether two perplexities are of the same text; those of the first release lack the text's hash."""
    names = [name for name in ("texts", "length_tokens", "text_hash") if name in first and name in second]
    return all(first[name] == second[name] for name in names)


def documents_key(row: Row) -> dict[str, tuple[Any, ...]]:
    """What a row's average was measured on; averages are comparable if this is equal."""
    names = ("documents", "metric", "data", "version")
    return {task: tuple(score.get(name) for name in names) for task, score in sorted(row.scores.items())}


def comparable(rows: dict[str, Row]) -> tuple[dict[str, Row], list[str]]:
    """The rows whose averages are of the same documents as the first row's, and the names of the others."""
    first = next(iter(rows.values()), None)
    same = {name: row for name, row in rows.items() if first and documents_key(row) == documents_key(first)}
    return same, [name for name in rows if name not in same]


def _mismatch(row: Row, original: Row) -> str:
    if not original.scores:
        return "the original has no scores"
    if {*row.scores} != {*original.scores}:
        return f"different tasks (only one has {', '.join(sorted({*row.scores} ^ {*original.scores}))})"
    return "different documents or metrics"


def reference_rows(rows: Sequence[Row], everything: Sequence[Row]) -> list[Row]:
    """For each row the control of a healed run, if it has one that was scored; otherwise the original.

    Args:
        everything: the rows as from `compare` of the same experiments.
    """
    places = {(row.experiment, row.run): row for row in everything}
    controls = [places.get((row.experiment, row.control_run or "")) for row in rows]
    return [
        control if control and control.scores else places[row.experiment, BASELINE]
        for row, control in zip(rows, controls, strict=True)
    ]


def documents_of(row: Row) -> dict[str, Any]:
    """The answers behind a row's scores, as in `documents.json`."""
    run, before = _run_of(row)
    return run.documents(before_recovery=before)


def scores_of(row: Row) -> dict[str, Any]:
    """The scores of the answers behind a row's, as from `scored`; read again only once they were written again."""
    run, before = _run_of(row)
    return _scored(str(run.experiment.folder), run.name, before, run.documents_changed(before))


@lru_cache(maxsize=64)
def _scored(folder: str, run: str, before_recovery: bool, _changed: int) -> dict[str, Any]:
    return scored(Experiment(Path(folder)).run(run).documents(before_recovery))


def _run_of(row: Row) -> tuple[Run, bool]:
    """The run behind a row, and whether the row is of its model before recovery."""
    run = Experiment.open(row.experiment).run(row.run)
    return run, row.stage == "merged" and run.stage == "recovered"


def flat_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows in reading order: each run before its recovery, then after."""
    return [stage for row in rows for stage in row.stages]


def _row_of(run: Run) -> Row:
    row = _row(run, run.stage, run.scores(), run.timing())
    if run.is_control and not run.timing() and (timing := run.experiment.run(BASELINE).timing()):
        timing = {"timed_as": ORIGINAL, **timing}  # the same layers with other weights
        row = _row(run, run.stage, run.scores(), timing)
    if (scores := run.scores_before_recovery()) and run.stage == "recovered":
        timing = run.timing_before_recovery()
        before = _row(run, "merged", scores, timing or run.timing())
        if not timing and run.timing():
            before = replace(before, timed_as=row_name(row))
        row = replace(row, before_recovery=before)
    return row


def _row(run: Run, stage: str, scores: dict[str, Any] | None, timing: dict[str, Any] | None) -> Row:
    scores, timing = scores or {}, timing or {}
    facts, healed = run.experiment.model_facts, stage == "recovered"
    merged, recovery = run.settings.get("merge", {}), run.settings["recovery"] if healed else {}
    parameters = merged.get("parameters", round(parameters_of(facts, run.plan)))
    tasks: Any = {task: {"chance": CHANCE.get(task), **score} for task, score in scores.get("tasks", {}).items()}
    perplexities: dict[str, Perplexity] = scores.get("perplexity", {})
    average, stderr = average_of(tasks)
    averages = continuous_averages(tasks)
    control = control_of(run) if healed else None
    timed_with = timing.get("baseline", {})
    return Row(
        experiment=run.experiment.name,
        run=run.name,
        stage=stage,
        layers=run.plan.layers_left,
        parameters=parameters,
        size_bytes=merged.get("size_bytes", parameters * facts["size_bytes"] // facts["parameters"]),
        healed_by=healed_by(run) if healed else None,
        control=run.is_control and healed,
        control_run=control.name if control else None,
        windows=run.plan.windows,
        fitted_first=healed and _fitted_first(run),
        rule=None if run.is_baseline else run.plan.rule,
        threshold=run.settings.get("threshold"),
        width=run.plan.width,
        method=_method(run),
        chosen_by=_chosen_by(run),
        perplexity=next((p["value"] for p in perplexities.values()), None),
        perplexities=perplexities,
        perplexity_text=next(iter(perplexities), None),
        seed=recovery.get("seed"),
        recovery_text=recovery.get("texts"),
        shared_texts=_shared_texts(run, stage, perplexities),
        scores=tasks,
        samples=scores.get("samples", []),
        average=average,
        average_stderr=stderr,
        average_choice_logprob=value_of(averages.get(CHOICE_LOGPROB)),
        averages=averages,
        tokens_per_second=timing.get("tokens_per_second"),
        latency_ms=timing.get("latency_ms"),
        peak_memory_bytes=timing.get("peak_memory_bytes"),
        speedup=timing.get("speedup"),
        throughput=timing.get("throughput", {}),
        llama_cpp=run.in_llama_cpp() if stage == run.stage else None,
        conditions=scores.get("conditions", {}),
        created=run.settings.get("created", 0.0),
        timed_with={name: timed_with[name] for name in (*SPEED, "throughput") if name in timed_with},
        timed_as=timing.get("timed_as"),
        timed_on={name: timing[name] for name in ("dtype", "device", "threads") if name in timing},
        dtype=facts.get("dtype"),
        deltas={},
    )


def _shared_texts(run: Run, stage: str, perplexities: Mapping[str, Perplexity]) -> dict[str, str]:
    """Perplexity texts whose documents were also used to search or heal the model, and for which of these."""
    uses = {"calibration": run.experiment.text_hash}
    if stage == "recovered":
        uses["recovery"] = run.settings["recovery"].get("text_hash", "")
    shared = {
        text: [use for use, text_hash in uses.items() if text_hash and text_hash == entry.get("text_hash")]
        for text, entry in perplexities.items()
    }
    return {text: " and ".join(names) for text, names in shared.items() if names}


def _fitted_first(run: Run) -> bool:
    """Whether least squares solved the merged layers that were trained: by the repair, or when they were merged."""
    repaired = run.settings["recovery"].get("repaired") or ""
    return repaired == "fit" or (run.plan.rule == "fit" and repaired != "scale")


def _method(run: Run) -> str | None:
    """The method behind the run's plan, if a study made it, and that of its width pruning."""
    if run.is_baseline:
        return "original"
    method: str | None = run.settings.get("method")
    return method and run.plan.width.after(method)


def _chosen_by(run: Run) -> str:
    """The name of what chose the run's windows: a planner, the merge rule of a threshold search, or BY_HAND."""
    if run.is_baseline or run.merges_nothing:
        return "original"
    planner = str(run.origin["planner"])
    return run.plan.width.after(run.plan.rule if planner == BY_THRESHOLD else planner)


def average_of(
    scores: Mapping[str, TaskScore], tasks: Collection[str] | None = None
) -> tuple[float | None, float | None]:
    """Mean accuracy and its standard error, treating tasks as independent; None if one of `tasks` is missing.

    Args:
        scores: by task, as in a row.
        tasks: only these; by default all.
    """
    names = [*scores] if tasks is None else [*tasks]
    if not names or not {*names} <= {*scores}:
        return None, None
    value = sum(scores[task]["value"] for task in names) / len(names)
    return value, math.sqrt(sum(scores[task]["stderr"] ** 2 for task in names)) / len(names)


def continuous_averages(scores: Mapping[str, Any]) -> dict[str, Range | None]:
    """The mean over tasks of each continuous score with its 95 % interval, treating tasks as independent.

    Over the tasks that have the score: bits per byte are missing where answers are labels, both without choices.
    """
    averages: dict[str, Range | None] = {}
    for name in SCORES[1:]:
        entries: list[Any] = [entry for score in scores.values() if (entry := score.get(name))]
        if entries:
            value = math.fsum(entry["value"] for entry in entries) / len(entries)
            reach = math.sqrt(math.fsum((entry["high"] - entry["low"]) ** 2 for entry in entries)) / 2 / len(entries)
            averages[name] = {"value": value, "low": value - reach, "high": value + reach}
    return averages


def _difference(value: float | None, baseline: float | None) -> float | None:
    return None if value is None or baseline is None else value - baseline


def value_of(entry: Range | Perplexity | None) -> float | None:
    """The value of an entry; None if it is missing."""
    return entry["value"] if entry else None
