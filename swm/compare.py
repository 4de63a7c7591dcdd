"""One table of an experiment's runs: what each is, what it scores, and the difference to the original."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import Any

from swm.experiments import BASELINE, Experiment, Run

MISSING = "–"
AGAINST = {"against": "method", **{f"against_{name}": name for name in ("difference", "low", "high")}}
SPEED = ("tokens_per_second", "latency_ms", "peak_memory_bytes")
STAGES = {"original": "original", "planned": "planned", "merged": "merged", "recovered": "merged + LoRA"}


def compare(experiment: Experiment) -> list[dict[str, Any]]:
    """One row for each run, the original first.

    Returns:
        Rows with `run`, `stage`, `layers`, `parameters`, `size_bytes`, `perplexity` (on LAMBADA unless another text was
        measured first), `perplexities` by text, `scores` by task (`value`, `stderr`, `metric`, `documents`), `average`
        and `average_stderr`, `tokens_per_second`, `latency_ms`, `peak_memory_bytes`, `speedup` (with `low` and `high`),
        `conditions` (what scores were measured with), `fitted_first` (whether merged layers were solved for before
        LoRA), `shared_texts` (perplexity texts that are also the calibration or the recovery text, so that their
        numbers are not independent), `timed_with` (the original's speed, measured in turn with the run's), `timed_as`
        (what was timed in its place, being of the same shape), `deltas` to the baseline, `not_compared` (why a delta
        is None though the run was measured). A recovered run that was evaluated before has that row under
        `before_recovery`.
        What was not measured is None. Only like is compared with like: perplexities of the same text, averages of the
        same documents of the same tasks; speed and memory with the original as it was measured in turn with the run.
    """
    rows = [_row_of(run) for run in experiment.runs()]
    for row in rows:
        for each in filter(None, (row, row.get("before_recovery"))):
            each["deltas"], each["not_compared"] = _deltas(each, rows[0])
    return rows


def _deltas(row: dict[str, Any], baseline: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The differences to the original, and why one is not there."""
    deltas = {name: _difference(row[name], baseline[name]) for name in ("layers", "parameters", "size_bytes")}
    timed_with = row["timed_with"] or baseline
    deltas |= {name: _difference(row[name], timed_with.get(name)) for name in SPEED}
    deltas |= dict.fromkeys(("perplexity", "average"))
    reasons = []
    if text := row["perplexity_text"]:
        other = baseline["perplexities"].get(text)
        if other is None:
            reasons.append(f"The original's perplexity on {text} was not measured.")
        elif not _same_text(other, row["perplexities"][text]):
            reasons.append(f"The original's perplexity was measured on another version or length of {text}.")
        else:
            deltas["perplexity"] = _difference(row["perplexity"], other["value"])
    if row["scores"] and documents_key(row) == documents_key(baseline):
        deltas["average"] = _difference(row["average"], baseline["average"])
    elif row["scores"]:
        reasons.append(f"Averages are not compared: {_unlike(row, baseline)}.")
    return deltas, reasons


def _same_text(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two perplexities were measured on the same; those of the first release do not say the text's hash."""
    names = [name for name in ("texts", "length_tokens", "text_hash") if name in first and name in second]
    return all(first[name] == second[name] for name in names)


def documents_key(row: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """What a row's average is of: averages are comparable where this is equal."""
    names = ("documents", "metric", "data", "version")
    return {task: tuple(score.get(name) for name in names) for task, score in sorted(row["scores"].items())}


def comparable(rows: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The scored rows whose averages are of the same documents as the first one's, and the names of the others."""
    first = next(iter(rows.values()), None)
    alike = {name: row for name, row in rows.items() if first and documents_key(row) == documents_key(first)}
    return alike, [name for name in rows if name not in alike]


def _unlike(row: dict[str, Any], other: dict[str, Any]) -> str:
    if not other["scores"]:
        return "the original has no scores"
    if set(row["scores"]) != set(other["scores"]):
        return f"different tasks (only one has {', '.join(sorted(set(row['scores']) ^ set(other['scores'])))})"
    return "different documents or metrics"


def documents_of(row: dict[str, Any]) -> dict[str, Any]:
    """The answers that a row's scores are of."""
    run = Experiment.open(row["experiment"]).run(row["run"])
    return run.documents(before_recovery=row["stage"] == "merged" and run.stage == "recovered")


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
        before = run.timing_before_recovery()
        row["before_recovery"] = _row(run, "merged", scores, before or run.timing())
        if not before and run.timing():
            row["before_recovery"]["timed_as"] = row_name(row)
    return row


def _row(run: Run, stage: str, scores: dict[str, Any] | None, timing: dict[str, Any] | None) -> dict[str, Any]:
    scores, timing = scores or {}, timing or {}
    facts = run.experiment.model_facts
    dropped = run.experiment.layer_count - run.plan.worth_layers
    merged = run.settings.get("merge", {})
    parameters = merged.get("parameters", round(facts["parameters"] - dropped * facts["parameters_per_layer"]))
    tasks = scores.get("tasks", {})
    perplexities = scores.get("perplexity", {})
    average, stderr = _average(tasks)
    timed_with = timing.get("baseline", {})
    return {
        "experiment": run.experiment.name,
        "run": run.name,
        "stage": stage,
        "layers": run.plan.layers_left,
        "parameters": parameters,
        "size_bytes": merged.get("size_bytes", parameters * facts["size_bytes"] // facts["parameters"]),
        "windows": [[window.first, window.last] for window in run.plan.windows],
        "fitted_first": stage == "recovered" and _fitted_first(run),
        "rule": None if run.is_baseline else run.plan.rule,
        "threshold": run.settings.get("threshold"),
        "width": asdict(run.plan.width),
        "method": _method(run),
        "perplexity": next((p["value"] for p in perplexities.values()), None),
        "perplexities": perplexities,
        "perplexity_text": next(iter(perplexities), None),
        "shared_texts": _shared_texts(run, stage, perplexities),
        "scores": tasks,
        "samples": scores.get("samples", []),
        "average": average,
        "average_stderr": stderr,
        "tokens_per_second": timing.get("tokens_per_second"),
        "latency_ms": timing.get("latency_ms"),
        "peak_memory_bytes": timing.get("peak_memory_bytes"),
        "speedup": timing.get("speedup"),
        "throughput": timing.get("throughput", {}),
        "conditions": scores.get("conditions", {}),
        "created": run.settings.get("created", 0.0),
        "timed_with": {name: timed_with[name] for name in SPEED if name in timed_with},
        "timed_as": timing.get("timed_as"),
    }


def _shared_texts(run: Run, stage: str, perplexities: dict[str, Any]) -> dict[str, str]:
    """Perplexity texts whose documents the model was also searched or healed with, and for what."""
    uses = {"calibration": run.experiment.text_hash}
    if stage == "recovered":
        uses["recovery"] = run.settings["recovery"].get("text_hash", "")
    shared = {
        text: [use for use, known in uses.items() if known and known == entry.get("text_hash")]
        for text, entry in perplexities.items()
    }
    return {text: " and ".join(found) for text, found in shared.items() if found}


def _fitted_first(run: Run) -> bool:
    return run.plan.rule == "fit" or run.settings["recovery"].get("repaired") == "fit"


def _method(run: Run) -> str | None:
    """What found the run's plan, where a study made it, and how its width was cut."""
    if run.is_baseline:
        return "original"
    method = run.settings.get("method")
    return method and run.plan.width.after(method)


def _average(tasks: dict[str, Any]) -> tuple[float | None, float | None]:
    """Mean of the tasks' values and its standard error, the tasks taken as independent."""
    if not tasks:
        return None, None
    value = sum(task["value"] for task in tasks.values()) / len(tasks)
    return value, math.sqrt(sum(task["stderr"] ** 2 for task in tasks.values())) / len(tasks)


def _difference(value: float | None, baseline: float | None) -> float | None:
    return None if value is None or baseline is None else value - baseline


def conditions_of(rows: list[dict[str, Any]]) -> str:
    """What the rows' scores were measured with, as one sentence; what is not the same for all is said in full."""
    measured = [row for row in rows if row["conditions"]]
    if not measured:
        return ""
    counts = [score["documents"] for row in measured for score in row["scores"].values()]
    seconds = [row["conditions"].get("seconds", 0.0) for row in measured]
    found = [f"{_span(counts)} documents of each task, zero-shot"] if counts else []
    found += [" or ".join(dict.fromkeys(_condition(row["conditions"]) for row in measured))]
    return f"{'; '.join(found)}. Scoring a model took {_span(seconds)} s."


def _condition(conditions: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    return f"{conditions['dtype']} on {conditions['device']}, seed {conditions.get('seed', MISSING)}; {versions}"


def _span(values: list[Any]) -> str:
    low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return low if low == high else f"{low} to {high}"


def csv_text(rows: list[dict[str, Any]]) -> str:
    """The comparison as comma-separated values, one line for each run and stage."""
    flat = flat_rows(rows)
    plain = ["run", "stage", "layers", "parameters", "size_bytes", "average", "average_stderr"]
    plain += [*SPEED, "experiment", "method", "fitted_first", "timed_as"]
    texts = list(dict.fromkeys(text for row in flat for text in row["perplexities"]))
    tasks = list(dict.fromkeys(task for row in flat for task in row["scores"]))
    heads = [*plain, *(f"perplexity_{text}" for text in texts)]
    measured_with = ("model", "texts", "seed", "dtype", "device", "seconds")
    heads += [f"{task}{suffix}" for task in tasks for suffix in ("", "_stderr")]
    heads += [*(f"{task}_documents" for task in tasks), *(f"measured_{name}" for name in measured_with), "versions"]
    if of_studies := any("against" in row for row in flat):
        heads += ["seeds", *AGAINST]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for row in flat:
        values = [row[name] for name in plain] + [row["perplexities"].get(text, {}).get("value") for text in texts]
        values += [row["scores"].get(task, {}).get(key) for task in tasks for key in ("value", "stderr")]
        values += [row["scores"].get(task, {}).get("documents") for task in tasks]
        values += [row["conditions"].get(name) for name in measured_with]
        values += [" ".join(f"{name}={version}" for name, version in row["conditions"].get("versions", {}).items())]
        if of_studies:
            values += [
                " ".join(map(str, row["seeds"])),
                *((row["against"] or {}).get(name) for name in AGAINST.values()),
            ]
        writer.writerow(values)
    return out.getvalue().rstrip("\n")


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison as plain text, for a terminal."""
    flat = flat_rows(rows)
    body = [("", [row_name(row) for row in flat]), *lines(flat)]
    head = max(len(label) for label, _ in body)
    widths = [max(len(cells[i]) for _, cells in body) for i in range(len(flat))]
    return "\n".join(
        "  ".join([label.ljust(head), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for label, cells in body
    )


def lines(flat: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The comparison as people read it: (what, one cell for each row); for terminal, page, report and model card."""
    found = [
        ("layers", [f"{row['layers']}" for row in flat]),
        ("parameters, million", [f"{row['parameters'] / 1e6:,.1f}" for row in flat]),
        ("size, MiB", [f"{row['size_bytes'] / 2**20:,.0f}" for row in flat]),
    ]
    for text in dict.fromkeys(text for row in flat for text in row["perplexities"]):
        uses = sorted({row["shared_texts"][text] for row in flat if text in row["shared_texts"]})
        told = f" (also the {' and '.join(uses)} text: not independent)" if uses else ""
        entries = [row["perplexities"][text] for row in flat if text in row["perplexities"]]
        if not all(_same_text(entries[0], entry) for entry in entries):
            told += " (different versions or lengths: not comparable)"
        found.append((f"perplexity, {text}{told}", [interval(row["perplexities"].get(text)) for row in flat]))
    for task in dict.fromkeys(task for row in flat for task in row["scores"]):
        scored = [row["scores"][task] for row in flat if task in row["scores"]]
        counts = " or ".join(dict.fromkeys(f"{score['documents']:,}" for score in scored))
        label = f"{task}, % ({scored[0]['metric']}, {counts} documents)"
        found.append((label, [_score(row["scores"].get(task)) for row in flat]))
    mixed = len({str(documents_key(row)) for row in flat if row["scores"]}) > 1
    averages = [percent(row["average"], row["average_stderr"]) + _of_tasks(row) * mixed for row in flat]
    found.append((f"average of tasks, %{' (different documents: not comparable)' * mixed}", averages))
    found.append(("tokens per second", _timed(flat, "tokens_per_second", 1)))
    for batch in dict.fromkeys(batch for row in flat for batch in row["throughput"] if batch != "1"):
        rates = [number(row["throughput"].get(batch), 0) for row in flat]
        found.append((f"tokens per second, batch of {batch}", rates))
    found.append(("speed, times the original", [speedup(row["speedup"]) for row in flat]))
    found.append(("latency, ms", _timed(flat, "latency_ms", 0)))
    memory = [row["peak_memory_bytes"] and row["peak_memory_bytes"] / 2**20 for row in flat]
    found.append(("peak memory, MiB", [number(value, 0) for value in memory]))
    if any(row["timed_as"] for row in flat):
        found.append(("speed measured on", [_measured(row) for row in flat]))
    return found


def _of_tasks(row: dict[str, Any]) -> str:
    return f" ({len(row['scores'])} tasks)" if row["scores"] else ""


def _measured(row: dict[str, Any]) -> str:
    """Of what speed and memory were measured: another model of the same shape is as fast."""
    return MISSING if row["tokens_per_second"] is None else str(row["timed_as"] or "itself")


def _timed(flat: list[dict[str, Any]], name: str, digits: int) -> list[str]:
    """A figure of speed of each row; where the original was measured otherwise beside it than its row says, with that.

    Machines are not always as fast: two figures compare only where they were measured in turn.
    """
    originals = {row["experiment"]: number(row[name], digits) for row in flat if row["run"] == BASELINE}
    cells = []
    for row in flat:
        beside = number(row["timed_with"].get(name), digits)
        told = beside not in (MISSING, originals.get(row["experiment"])) and row["run"] != BASELINE
        cells.append(number(row[name], digits) + (f" (original in the same session: {beside})" if told else ""))
    return cells


def row_name(row: dict[str, Any]) -> str:
    """What people call a row: "original", "first (merged)", "first (merged + LoRA)"."""
    return run_name(row["run"], row["stage"])


def run_name(run: str, stage: str) -> str:
    return "original" if run == BASELINE else f"{run} ({STAGES[stage]})"


def interval(entry: dict[str, Any] | None) -> str:
    return f"{_short(entry['value'])} [{_short(entry['low'])}, {_short(entry['high'])}]" if entry else MISSING


def _short(value: float) -> str:
    """A perplexity: those of broken models run into millions."""
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}" if value < 100_000 else f"{value:.1e}"


def speedup(entry: dict[str, Any] | None) -> str:
    return f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]" if entry else MISSING


def _score(entry: dict[str, Any] | None) -> str:
    return percent(entry["value"], entry["stderr"]) if entry else MISSING


def percent(value: float | None, stderr: float | None) -> str:
    return MISSING if value is None or stderr is None else f"{100 * value:.1f} ± {100 * stderr:.1f}"


def points(entry: dict[str, Any] | None) -> str:
    """A difference of shares with its interval."""
    if entry is None:
        return MISSING
    return f"{100 * entry['difference']:+.1f} [{100 * entry['low']:+.1f}, {100 * entry['high']:+.1f}]"


def number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"
