"""Tables of the pages, made with pandas from plain rows."""

from __future__ import annotations

from typing import Any

import pandas as pd

from swm.compare import row_name
from swm.experiments import Experiment
from swm.search import PlanAt

STAGES = {"original": "original", "planned": "planned", "merged": "merged", "recovered": "merged + LoRA"}


def comparison_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One line for each figure, one column for each run, as text with error bars."""
    texts = list(dict.fromkeys(text for row in rows for text in row["perplexities"]))
    tasks = list(dict.fromkeys(task for row in rows for task in row["scores"]))
    lines: dict[str, list[str]] = {
        "layers": [str(row["layers"]) for row in rows],
        "parameters, million": [f"{row['parameters'] / 1e6:,.1f}" for row in rows],
        "size, MiB": [f"{row['size_bytes'] / 2**20:,.0f}" for row in rows],
    }
    for text in texts:
        lines[f"perplexity, {text}"] = [_interval(row["perplexities"].get(text)) for row in rows]
    for task in tasks:
        metric = next(row["scores"][task]["metric"] for row in rows if task in row["scores"])
        lines[f"{task}, % ({metric})"] = [_score(row["scores"].get(task), row["deltas"]) for row in rows]
    lines["average of tasks, %"] = [_with_error(row["average"], row["average_stderr"]) for row in rows]
    lines["tokens per second"] = [_number(row["tokens_per_second"]) for row in rows]
    lines["latency, ms"] = [_number(row["latency_ms"], 0) for row in rows]
    lines["peak memory, MiB"] = [
        _number(row["peak_memory_bytes"] and row["peak_memory_bytes"] / 2**20, 0) for row in rows
    ]
    return pd.DataFrame.from_dict(lines, orient="index", columns=[row_name(row) for row in rows])


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
        }
    )


def _interval(entry: dict[str, Any] | None) -> str:
    return f"{entry['value']:,.1f} [{entry['low']:,.1f}, {entry['high']:,.1f}]" if entry else "–"


def _score(entry: dict[str, Any] | None, deltas: dict[str, Any]) -> str:
    return _with_error(entry["value"], entry["stderr"]) if entry else "–"


def _with_error(value: float | None, stderr: float | None) -> str:
    return "–" if value is None or stderr is None else f"{100 * value:.1f} ± {100 * stderr:.1f}"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
