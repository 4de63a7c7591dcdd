"""The comparison of runs: every figure is listed once, here, for terminal, pages, report, model card and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from swm.evaluation.paired import BITS_PER_BYTE, CHOICE_LOGPROB, SCORES
from swm.reporting.compare import average_of, documents_key, flat_rows, same_text, value_of
from swm.reporting.glossary import FORMS, TITLES, UNITS
from swm.reporting.names import row_name, text_title
from swm.reporting.numbers import MISSING, interval, number, percent, points, ratio, speedup
from swm.reporting.row import DIFFERENCE, Row

LLAMA_CPP = ("type", "tokens_per_second", "prompt_tokens_per_second", "perplexity", "size_bytes")
MEASURED_WITH = ("model", "texts", "seed", "dtype", "device", "seconds")
MADE_BY = ("control", "control_run", "experiment", "method", "fitted_first", "timed_as")
ALWAYS = ("run", "stage", "layers", "parameters", "size_bytes", "average", "average_stderr", "average_choice_logprob")
Value = Callable[[Row], Any]


@dataclass(frozen=True)
class Figure:
    """A number of every row: a line of the comparison, a column to sort by, and columns of the CSV.

    Attributes:
        title: with its unit. note: what the line's title adds, such as the number of documents.
        text: of a row, with its interval.
        value: of a row, as the CSV has it; None if it was not measured. Without it, text is all.
        column: name in the CSV, "" if it is not there.
        more: further columns of the CSV.
    """

    title: str
    text: Callable[[Row], str]
    column: str = ""
    value: Callable[[Row], float | None] | None = None
    note: str = ""
    more: Mapping[str, Value] = field(default_factory=dict)


def figures(flat: Sequence[Row]) -> list[Figure]:
    """All figures of these rows in reading order. To show another one everywhere, add it here."""
    counts = (
        _plain("layers", "layers", lambda row: row.layers),
        _plain("parameters, million", "parameters", lambda row: row.parameters, 1e-6, 1),
        _plain("size, MiB", "size_bytes", lambda row: row.size_bytes, 2**-20),
    )
    timed = partial(_timed, flat)
    memory = _plain("peak memory, MiB", "peak_memory_bytes", lambda row: row.peak_memory_bytes, 2**-20)
    batches = [batch for batch in dict.fromkeys(batch for row in flat for batch in row.throughput) if batch != "1"]
    return [
        *counts,
        *_perplexities(flat),
        *_tasks(flat),
        *_averages(flat),
        timed("tokens per second", "tokens_per_second", lambda of: of.get("tokens_per_second"), 1),
        *(timed(f"tokens per second, batch of {n}", "", partial(_rate, n), 0) for n in batches),
        Figure(
            "speed relative to the original",
            lambda row: speedup(row.speedup),
            "speedup",
            lambda row: value_of(row.speedup),
        ),
        timed("latency, ms", "latency_ms", lambda of: of.get("latency_ms"), 0),
        memory,
        *_in_llama_cpp(flat),
        *([Figure("speed measured on", _measured)] if any(row.timed_as for row in flat) else []),
    ]


def _plain(
    title: str, column: str, value: Callable[[Row], float | None], scale: float = 1.0, digits: int = 0
) -> Figure:
    def text(row: Row) -> str:
        found = value(row)
        return number(None if found is None else scale * found, digits)

    return Figure(title, text, column, value)


def _perplexities(flat: Sequence[Row]) -> list[Figure]:
    return [_perplexity(text, flat) for text in dict.fromkeys(text for row in flat for text in row.perplexities)]


def _perplexity(text: str, flat: Sequence[Row]) -> Figure:
    uses = sorted({row.shared_texts[text] for row in flat if text in row.shared_texts})
    note = f" (also the {' and '.join(uses)} text: not independent)" if uses else ""
    entries = [row.perplexities[text] for row in flat if text in row.perplexities]
    if not all(same_text(entries[0], entry) for entry in entries):
        note += " (different versions or lengths: not comparable)"
    return Figure(
        f"perplexity, {text_title(text)}",
        lambda row: interval(row.perplexities.get(text)),
        f"perplexity_{text}",
        lambda row: value_of(row.perplexities.get(text)),
        note=note,
    )


def _tasks(flat: Sequence[Row]) -> list[Figure]:
    return [_task(task, flat) for task in dict.fromkeys(task for row in flat for task in row.scores)]


def _task(task: str, flat: Sequence[Row]) -> Figure:
    def of(name: str) -> Value:
        return lambda row: row.scores[task].get(name) if task in row.scores else None

    def value(name: str) -> Value:
        return lambda row: value_of(of(name)(row))

    scored = [row.scores[task] for row in flat if task in row.scores]
    counts = " or ".join(dict.fromkeys(f"{score['documents']:,}" for score in scored))
    return Figure(
        f"{task}, %",
        lambda row: percent(of("value")(row), of("stderr")(row)),
        task,
        of("value"),
        f" ({scored[0]['metric']}, {counts} documents{_at_chance(task, flat)})",
        {
            f"{task}_stderr": of("stderr"),
            **{f"{task}_{name}": value(name) for name in SCORES[1:]},
            f"{task}_documents": of("documents"),
        },
    )


def _at_chance(task: str, flat: Sequence[Row]) -> str:
    """A note if the original's accuracy on a task cannot be told from guessing."""
    for original in [row for row in flat if row.is_original and task in row.scores][:1]:
        chance = original.scores[task]["chance"]
        if chance is not None and task not in original.tasks_above_chance:
            return f"; the original is not above chance, {100 * chance:.0f} %"
    return ""


def _averages(flat: Sequence[Row]) -> list[Figure]:
    """The average accuracy; and, if a row has continuous scores, their averages and that of the tasks above chance."""
    mixed = len({str(documents_key(row)) for row in flat if row.scores}) > 1
    note = " (different documents: not comparable)" * mixed

    def text(row: Row) -> str:
        tasks = f" ({len(row.scores)} tasks)" if row.scores and mixed else ""
        return percent(row.average, row.average_stderr) + tasks

    errors: dict[str, Value] = {"average_stderr": lambda row: row.average_stderr}
    found = [Figure("average of tasks, %", text, "average", lambda row: row.average, note, errors)]
    above = next((row.tasks_above_chance for row in flat if row.tasks_above_chance), ())
    if above and any(row.averages for row in flat):
        title = f"average of tasks above chance, % ({', '.join(above)})"
        found.append(Figure(title, lambda row: percent(*average_of(row.scores, above)), note=note))
    if any(row.averages for row in flat):
        found.append(_average(CHOICE_LOGPROB, "choice log-probability, nats", note))
        found.append(_average(BITS_PER_BYTE, "bits per byte", note))
    return found


def _average(score: str, title: str, note: str) -> Figure:
    return Figure(
        f"average {title}",
        lambda row: interval(row.averages.get(score), 2),
        f"average_{score}",
        lambda row: value_of(row.averages.get(score)),
        note=note,
    )


def _timed(
    flat: Sequence[Row], title: str, column: str, find: Callable[[Mapping[str, Any]], float | None], digits: int
) -> Figure:
    """A figure of speed: each row's, plus the original's from the same session if that differs from its own row.

    A machine's speed varies over time, so only values measured in turn are comparable.

    Args:
        find: finds it in a row's measurements, and in its `timed_with`.
    """

    def value(row: Row) -> float | None:
        own = {"tokens_per_second": row.tokens_per_second, "latency_ms": row.latency_ms, "throughput": row.throughput}
        return find(own)

    def text(row: Row) -> str:
        original = number(find(row.timed_with), digits)
        differs = original not in (MISSING, originals.get(row.experiment)) and not row.is_original
        return number(value(row), digits) + (f" (original: {original})" if differs else "")

    originals = {row.experiment: number(value(row), digits) for row in flat if row.is_original}
    return Figure(title, text, column, value)


def _rate(batch: str, of: Mapping[str, Any]) -> float | None:
    rate: float | None = of.get("throughput", {}).get(batch)
    return rate


def _in_llama_cpp(flat: Sequence[Row]) -> list[Figure]:
    kinds = dict.fromkeys(row.llama_cpp["type"] for row in flat if row.llama_cpp)
    return [figure for kind in kinds for figure in _of_files(kind, flat)]


def _of_files(kind: str, flat: Sequence[Row]) -> list[Figure]:
    """Speed and quality of the runs' GGUF files of one type in llama.cpp."""
    measured = [row.llama_cpp for row in flat if row.llama_cpp and row.llama_cpp["type"] == kind]
    original: dict[str, Any] = next((one["baseline"] for one in measured if "baseline" in one), {})

    def of(name: str) -> Value:
        return lambda row: (original if row.is_original else row.llama_cpp if row.llama_cpp in measured else {}).get(
            name
        )

    def shown(title: str, name: str, digits: int) -> Figure:
        return Figure(f"in llama.cpp ({kind}): {title}", lambda row: number(of(name)(row), digits))

    return [
        shown("tokens per second", "tokens_per_second", 1),
        shown("prompt tokens per second", "prompt_tokens_per_second", 0),
        shown("perplexity, part of the calibration text", "perplexity", 2),
        Figure(f"in llama.cpp ({kind}): speed", lambda row: speedup(of("speedup")(row))),
        _plain(f"in llama.cpp ({kind}): file, MiB", "", of("size_bytes"), 2**-20),
    ]


def _measured(row: Row) -> str:
    """The row whose speed and memory were measured: models of the same shape are equally fast."""
    return MISSING if row.tokens_per_second is None else str(row.timed_as or "itself")


def lines(flat: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """The comparison line by line: (label, one cell for each row)."""
    return [(figure.title + figure.note, [figure.text(row) for row in flat]) for figure in figures(flat)]


def table(rows: Sequence[Row]) -> str:
    """The comparison as a plain-text table, for a terminal; then the verdict on each row of `judged`."""
    flat = flat_rows(rows)
    body = [("", [row_name(row) for row in flat]), *lines(flat)]
    head = max(len(label) for label, _ in body)
    widths = [max(len(cells[i]) for _, cells in body) for i in range(len(flat))]
    table_lines = [
        "  ".join([label.ljust(head), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for label, cells in body
    ]
    verdicts = [f"{row_name(row)}: {row.verdict}" for row in flat if row.verdict]
    explained = ["", *verdicts, "", "In the verdicts, brackets are 95 % intervals."] if verdicts else []
    return "\n".join([*table_lines, *explained])


def csv_text(rows: Sequence[Row]) -> str:
    """The comparison as comma-separated values, one line for each run and stage."""
    flat = flat_rows(rows)
    shown, out = figures(flat), io.StringIO()
    found = [_csv_line(row, shown) for row in flat]
    names = dict.fromkeys((*ALWAYS, *(name for line in found for name in line)))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return out.getvalue().rstrip("\n")


def _csv_line(row: Row, shown: Sequence[Figure]) -> dict[str, Any]:
    line: dict[str, Any] = {"run": row.run, "stage": row.stage}
    for figure in shown:
        line |= {figure.column: figure.value(row)} if figure.column and figure.value else {}
        line |= {name: value(row) for name, value in figure.more.items()}
    line |= {name: getattr(row, name) for name in MADE_BY}
    line |= {f"measured_{name}": row.conditions.get(name) for name in MEASURED_WITH}
    line["versions"] = " ".join(f"{name}={version}" for name, version in row.conditions.get("versions", {}).items())
    if row.llama_cpp:
        line |= {f"llama_cpp_{name}": row.llama_cpp.get(name) for name in LLAMA_CPP}
    if row.verdict:
        line["verdict"] = str(row.verdict)
    if row.runs:
        line |= {"seeds": " ".join(map(str, row.seeds)), "against": row.against_method if row.against else None}
        line |= {f"against_{name}": row.difference and row.difference[name] for name in DIFFERENCE[:3]}
    return line


def conditions_of(rows: Sequence[Row]) -> str:
    """What the rows' scores were measured with, in a sentence or two; values that differ are all listed."""
    measured = [row for row in rows if row.conditions]
    if not measured:
        return ""
    counts = [score["documents"] for row in measured for score in row.scores.values()]
    seconds = [row.conditions.get("seconds", 0.0) for row in measured]
    parts = [f"{_span(counts)} documents per task, zero-shot"] if counts else []
    parts += [" or ".join(dict.fromkeys(_condition(row.conditions) for row in measured))]
    return f"{'; '.join(parts)}. Scoring a model took {_span(seconds)} s."


def _condition(conditions: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    return f"{conditions['dtype']} on {conditions['device']}, seed {conditions.get('seed', MISSING)}; {versions}"


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return low if low == high else f"{low} to {high}"


def cost_lines(flat: Sequence[Row], pinned: bool = False) -> list[dict[str, str]]:
    """The differences of each row of `judged` as text: from both its control, if it has one, and the original.

    Args:
        pinned: instead, from the row that `pin` was given.
    """
    judged = [
        (row, against)
        for row in flat
        for against in ((row.against_pinned,) if pinned else (row.against_control, row.against_original))
        if against
    ]
    texts = dict.fromkeys(text for _, against in judged for text in against.perplexity)
    several = len({row.experiment for row in flat}) > 1
    return [
        {
            "run": f"{row.experiment}: {row_name(row)}" if several else row_name(row),
            "compared with": against.reference,
            **{f"perplexity, {text_title(text)}": ratio(against.perplexity.get(text)) for text in texts},
            **{_with_unit(score): points(against.scores.get(score), *FORMS[score]) for score in SCORES},
            "accuracy, tasks above chance (points)": points(against.above_chance),
        }
        for row, against in judged
    ]


def _with_unit(score: str) -> str:
    title, unit = TITLES[score].lower(), UNITS[score]
    return title if title == unit else f"{title} ({unit})"
