"""One table of an experiment's runs: what each is, what it scores, and the difference to the original."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from swm.experiments import BASELINE, Experiment, Run

DELTAS = ("layers", "parameters", "perplexity", "average", "tokens_per_second", "latency_ms", "peak_memory_bytes")


def compare(experiment: Experiment) -> list[dict[str, Any]]:
    """One row for each run, the original first.

    Returns:
        Rows with `run`, `stage`, `layers`, `parameters`, `size_bytes`, `perplexity` (on LAMBADA unless another text was
        measured first), `perplexities` by text, `scores` by task (`value`, `stderr`, `metric`, `documents`), `average`
        and `average_stderr`, `tokens_per_second`, `latency_ms`, `peak_memory_bytes`, `deltas` to the baseline. A
        recovered run that was evaluated before has that row under `before_recovery`. What was not measured is None.
    """
    rows = [_row_of(run) for run in experiment.runs()]
    baseline = rows[0]
    for row in rows:
        for each in filter(None, (row, row.get("before_recovery"))):
            each["deltas"] = {key: _difference(each[key], baseline[key]) for key in DELTAS}
    return rows


def flat_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in the order people read them: a run before its recovery, then after."""
    flat = []
    for row in rows:
        if row.get("before_recovery"):
            flat.append(row["before_recovery"])
        flat.append(row)
    return flat


def _row_of(run: Run) -> dict[str, Any]:
    row = _row(run, run.stage, run.scores(), run.timing())
    if (scores := run.scores_before_recovery()) and run.stage == "recovered":
        row["before_recovery"] = _row(run, "merged", scores, run.timing_before_recovery() or run.timing())
    return row


def _row(run: Run, stage: str, scores: dict[str, Any] | None, timing: dict[str, Any] | None) -> dict[str, Any]:
    scores, timing = scores or {}, timing or {}
    facts = run.experiment.model_facts
    dropped = run.experiment.layer_count - run.plan.layers_left
    counted = run.settings.get("merge", {}).get("parameters")
    parameters = counted or facts["parameters"] - dropped * facts["parameters_per_layer"]
    tasks = scores.get("tasks", {})
    perplexities = scores.get("perplexity", {})
    average, stderr = _average(tasks)
    return {
        "run": run.name,
        "stage": stage,
        "layers": run.plan.layers_left,
        "parameters": parameters,
        "size_bytes": parameters * facts["size_bytes"] // facts["parameters"],
        "windows": [[window.first, window.last] for window in run.plan.windows],
        "rule": None if run.is_baseline else run.plan.rule,
        "threshold": run.settings.get("threshold"),
        "perplexity": next((p["value"] for p in perplexities.values()), None),
        "perplexities": perplexities,
        "scores": tasks,
        "average": average,
        "average_stderr": stderr,
        "tokens_per_second": timing.get("tokens_per_second"),
        "latency_ms": timing.get("latency_ms"),
        "peak_memory_bytes": timing.get("peak_memory_bytes"),
    }


def _average(tasks: dict[str, Any]) -> tuple[float | None, float | None]:
    """Mean of the tasks' values and its standard error, the tasks taken as independent."""
    if not tasks:
        return None, None
    value = sum(task["value"] for task in tasks.values()) / len(tasks)
    return value, math.sqrt(sum(task["stderr"] ** 2 for task in tasks.values())) / len(tasks)


def _difference(value: float | None, baseline: float | None) -> float | None:
    return None if value is None or baseline is None else value - baseline


def csv_text(rows: list[dict[str, Any]]) -> str:
    """The comparison as comma-separated values, one line for each run and stage."""
    flat = flat_rows(rows)
    plain = ["run", "stage", "layers", "parameters", "size_bytes", "average", "average_stderr"]
    plain += ["tokens_per_second", "latency_ms", "peak_memory_bytes"]
    texts = list(dict.fromkeys(text for row in flat for text in row["perplexities"]))
    tasks = list(dict.fromkeys(task for row in flat for task in row["scores"]))
    heads = [*plain, *(f"perplexity_{text}" for text in texts)]
    heads += [f"{task}{suffix}" for task in tasks for suffix in ("", "_stderr")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for row in flat:
        values = [row[name] for name in plain] + [row["perplexities"].get(text, {}).get("value") for text in texts]
        values += [row["scores"].get(task, {}).get(key) for task in tasks for key in ("value", "stderr")]
        writer.writerow(values)
    return out.getvalue().rstrip("\n")


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison as plain text, for a terminal."""
    tasks = list(dict.fromkeys(task for row in rows for task in row["scores"]))
    texts = list(dict.fromkeys(text for row in rows for text in row["perplexities"]))
    columns = [row_name(row) for row in flat_rows(rows)]
    lines: list[tuple[str, list[str]]] = [
        ("layers", [f"{row['layers']}" for row in flat_rows(rows)]),
        ("parameters, million", [f"{row['parameters'] / 1e6:.1f}" for row in flat_rows(rows)]),
    ]
    for text in texts:
        lines.append((f"perplexity {text}", [_perplexity(row["perplexities"].get(text)) for row in flat_rows(rows)]))
    for task in tasks:
        metric = next(row["scores"][task]["metric"] for row in rows if task in row["scores"])
        lines.append((f"{task} ({metric})", [_score(row["scores"].get(task)) for row in flat_rows(rows)]))
    lines.append(("average", [_percent(row["average"], row["average_stderr"]) for row in flat_rows(rows)]))
    speeds = [row["tokens_per_second"] for row in flat_rows(rows)]
    lines.append(("tokens per second", ["-" if speed is None else f"{speed:.1f}" for speed in speeds]))
    widths = [max(len(name), *(len(values[i]) for _, values in lines)) for i, name in enumerate(columns)]
    head = max(len(label) for label, _ in lines)
    body = [(" " * head, columns), *((label.ljust(head), values) for label, values in lines)]
    return "\n".join(
        "  ".join([label, *(v.rjust(w) for v, w in zip(values, widths, strict=True))]) for label, values in body
    )


def row_name(row: dict[str, Any]) -> str:
    """What people call a row: "original", "first (merged)", "first (merged + LoRA)"."""
    if row["run"] == BASELINE:
        return "original"
    return f"{row['run']} ({'merged + LoRA' if row['stage'] == 'recovered' else row['stage']})"


def _perplexity(entry: dict[str, Any] | None) -> str:
    return f"{entry['value']:.1f} [{entry['low']:.1f}, {entry['high']:.1f}]" if entry else "-"


def _score(entry: dict[str, Any] | None) -> str:
    return _percent(entry["value"], entry["stderr"]) if entry else "-"


def _percent(value: float | None, stderr: float | None) -> str:
    return "-" if value is None or stderr is None else f"{100 * value:.1f} ±{100 * stderr:.1f}"
