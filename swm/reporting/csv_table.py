"""The comparison of runs as comma-separated values."""

from __future__ import annotations

import csv
import io
from typing import Any

from swm.evaluation.paired import SCORES
from swm.reporting.compare import SPEED, flat_rows

CONTINUOUS = SCORES[1:]
LLAMA_CPP = ("type", "tokens_per_second", "prompt_tokens_per_second", "perplexity", "size_bytes")
AGAINST = {"against": "method", **{f"against_{name}": name for name in ("difference", "low", "high")}}


def csv_text(rows: list[dict[str, Any]]) -> str:
    """The comparison as comma-separated values, one line for each run and stage."""
    flat = flat_rows(rows)
    plain = ["run", "stage", "layers", "parameters", "size_bytes", "average", "average_stderr"]
    plain += ["average_choice_logprob", "control", "control_run"]
    plain += [*SPEED, "experiment", "method", "fitted_first", "timed_as"]
    texts = list(dict.fromkeys(text for row in flat for text in row["perplexities"]))
    tasks = list(dict.fromkeys(task for row in flat for task in row["scores"]))
    header = [*plain, *(f"perplexity_{text}" for text in texts)]
    measured_with = ("model", "texts", "seed", "dtype", "device", "seconds")
    header += [f"{task}{suffix}" for task in tasks for suffix in ("", "_stderr")]
    header += [f"{task}_{score}" for task in tasks for score in CONTINUOUS]
    header += [*(f"{task}_documents" for task in tasks), *(f"measured_{name}" for name in measured_with), "versions"]
    if there := any(row["llama_cpp"] for row in flat):
        header += [f"llama_cpp_{name}" for name in LLAMA_CPP]
    if judged := any("verdict" in row for row in flat):
        header.append("verdict")
    if of_studies := any("against" in row for row in flat):
        header += ["seeds", *AGAINST]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in flat:
        values = [row[name] for name in plain] + [row["perplexities"].get(text, {}).get("value") for text in texts]
        values += [row["scores"].get(task, {}).get(key) for task in tasks for key in ("value", "stderr")]
        values += [
            (row["scores"].get(task, {}).get(score) or {}).get("value") for task in tasks for score in CONTINUOUS
        ]
        values += [row["scores"].get(task, {}).get("documents") for task in tasks]
        values += [row["conditions"].get(name) for name in measured_with]
        values += [" ".join(f"{name}={version}" for name, version in row["conditions"].get("versions", {}).items())]
        if there:
            values += [(row["llama_cpp"] or {}).get(name) for name in LLAMA_CPP]
        if judged:
            values.append(row.get("verdict"))
        if of_studies:
            values += [
                " ".join(map(str, row["seeds"])),
                *((row["against"] or {}).get(name) for name in AGAINST.values()),
            ]
        writer.writerow(values)
    return out.getvalue().rstrip("\n")
