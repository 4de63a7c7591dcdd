"""The comparison of runs as rows of text, for terminal, page, report and model card."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from swm.evaluation.paired import SCORES, TOO_FEW
from swm.reporting.compare import average_of, documents_key, flat_rows, percent_interval, same_text
from swm.reporting.glossary import FORMS, TITLES, UNITS
from swm.reporting.names import row_name, text_title
from swm.reporting.verdict import UNCLEAR, digits_for, is_shown
from swm.workspace.runs import BASELINE

MISSING = "–"


def conditions_of(rows: list[dict[str, Any]]) -> str:
    """What the rows' scores were measured with, in a sentence or two; values that differ are all listed."""
    measured = [row for row in rows if row["conditions"]]
    if not measured:
        return ""
    counts = [score["documents"] for row in measured for score in row["scores"].values()]
    seconds = [row["conditions"].get("seconds", 0.0) for row in measured]
    parts = [f"{_span(counts)} documents per task, zero-shot"] if counts else []
    parts += [" or ".join(dict.fromkeys(_condition(row["conditions"]) for row in measured))]
    return f"{'; '.join(parts)}. Scoring a model took {_span(seconds)} s."


def _condition(conditions: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    return f"{conditions['dtype']} on {conditions['device']}, seed {conditions.get('seed', MISSING)}; {versions}"


def _span(values: list[Any]) -> str:
    low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return low if low == high else f"{low} to {high}"


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison as a plain-text table, for a terminal; then the verdict on each row of `judged`."""
    flat = flat_rows(rows)
    body = [("", [row_name(row) for row in flat]), *lines(flat)]
    head = max(len(label) for label, _ in body)
    widths = [max(len(cells[i]) for _, cells in body) for i in range(len(flat))]
    table_lines = [
        "  ".join([label.ljust(head), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for label, cells in body
    ]
    verdicts = [f"{row_name(row)}: {row['verdict']}" for row in flat if row.get("verdict")]
    explained = ["", *verdicts, "", "In the verdicts, brackets are 95 % intervals."] if verdicts else []
    return "\n".join([*table_lines, *explained])


def lines(flat: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """The comparison line by line: (label, one cell for each row); for terminal, page, report and model card."""
    table_lines = [
        ("layers", [f"{row['layers']}" for row in flat]),
        ("parameters, million", [f"{row['parameters'] / 1e6:,.1f}" for row in flat]),
        ("size, MiB", [f"{row['size_bytes'] / 2**20:,.0f}" for row in flat]),
    ]
    for text in dict.fromkeys(text for row in flat for text in row["perplexities"]):
        uses = sorted({row["shared_texts"][text] for row in flat if text in row["shared_texts"]})
        note = f" (also the {' and '.join(uses)} text: not independent)" if uses else ""
        entries = [row["perplexities"][text] for row in flat if text in row["perplexities"]]
        if not all(same_text(entries[0], entry) for entry in entries):
            note += " (different versions or lengths: not comparable)"
        table_lines.append(
            (f"perplexity, {text_title(text)}{note}", [interval(row["perplexities"].get(text)) for row in flat])
        )
    for task in dict.fromkeys(task for row in flat for task in row["scores"]):
        scored = [row["scores"][task] for row in flat if task in row["scores"]]
        counts = " or ".join(dict.fromkeys(f"{score['documents']:,}" for score in scored))
        label = f"{task}, % ({scored[0]['metric']}, {counts} documents{_at_chance(task, scored[0], flat)})"
        table_lines.append((label, [_score(row["scores"].get(task)) for row in flat]))
    mixed = len({str(documents_key(row)) for row in flat if row["scores"]}) > 1
    averages = [percent(row["average"], row["average_stderr"]) + _of_tasks(row) * mixed for row in flat]
    apart = " (different documents: not comparable)" * mixed
    table_lines.append((f"average of tasks, %{apart}", averages))
    table_lines += _continuous(flat, apart)
    table_lines.append(("tokens per second", _timed(flat, "tokens_per_second", 1)))
    for batch in dict.fromkeys(batch for row in flat for batch in row["throughput"] if batch != "1"):
        rates = _with_original(flat, partial(_rate, batch), 0)
        table_lines.append((f"tokens per second, batch of {batch}", rates))
    table_lines.append(("speed relative to the original", [speedup(row["speedup"]) for row in flat]))
    table_lines.append(("latency, ms", _timed(flat, "latency_ms", 0)))
    memory = [row["peak_memory_bytes"] and row["peak_memory_bytes"] / 2**20 for row in flat]
    table_lines.append(("peak memory, MiB", [number(value, 0) for value in memory]))
    table_lines += _in_llama_cpp(flat)
    if any(row["timed_as"] for row in flat):
        table_lines.append(("speed measured on", [_measured(row) for row in flat]))
    return table_lines


def _rate(batch: str, timed: dict[str, Any]) -> float | None:
    rate: float | None = timed.get("throughput", {}).get(batch)
    return rate


def _in_llama_cpp(flat: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Speed and quality of the runs' GGUF files in llama.cpp, for each type that was measured."""
    table_lines = []
    for kind in dict.fromkeys(row["llama_cpp"]["type"] for row in flat if row["llama_cpp"]):
        measured = [row["llama_cpp"] for row in flat if row["llama_cpp"] and row["llama_cpp"]["type"] == kind]
        original: dict[str, Any] = next((one["baseline"] for one in measured if "baseline" in one), {})
        found = [
            original if row["run"] == BASELINE else row["llama_cpp"] if row["llama_cpp"] in measured else {}
            for row in flat
        ]
        for label, name, digits in (
            ("tokens per second", "tokens_per_second", 1),
            ("prompt tokens per second", "prompt_tokens_per_second", 0),
            ("perplexity, part of the calibration text", "perplexity", 2),
        ):
            table_lines.append((f"in llama.cpp ({kind}): {label}", [number(one.get(name), digits) for one in found]))
        table_lines.append((f"in llama.cpp ({kind}): speed", [speedup(one.get("speedup")) for one in found]))
        sizes = [one and one["size_bytes"] / 2**20 for one in found]
        table_lines.append((f"in llama.cpp ({kind}): file, MiB", [number(size or None, 0) for size in sizes]))
    return table_lines


def _at_chance(task: str, score: dict[str, Any], flat: list[dict[str, Any]]) -> str:
    """A note if the original's accuracy on a task cannot be told from guessing."""
    originals = [row for row in flat if row["run"] == BASELINE and task in row["scores"]]
    if not originals or score.get("chance") is None or task in originals[0]["tasks_above_chance"]:
        return ""
    return f"; the original is not above chance, {100 * score['chance']:.0f} %"


def _continuous(flat: list[dict[str, Any]], apart: str) -> list[tuple[str, list[str]]]:
    """Averages of continuous scores, and of the accuracy on tasks above chance; nothing if no row has them."""
    table_lines = []
    above: list[str] = next((row["tasks_above_chance"] for row in flat if row["tasks_above_chance"]), [])
    if any(row["averages"] for row in flat):
        if above:
            cells = [percent(*average_of(row["scores"], above)) for row in flat]
            table_lines.append((f"average of tasks above chance, % ({', '.join(above)}){apart}", cells))
        for name, title in (("choice_logprob", "choice log-probability, nats"), ("bits_per_byte", "bits per byte")):
            cells = [interval(row["averages"].get(name), 2) for row in flat]
            table_lines.append((f"average {title}{apart}", cells))
    return table_lines


def cost_lines(flat: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The differences of each row of `judged` as text: from the row that `pin` was given, otherwise from both its
    control, if it has one, and the original."""
    pinned = any("against_pinned" in row for row in flat)
    references = ("against_pinned",) if pinned else ("against_control", "against_original")
    judged = [(row, against) for row in flat for name in references if (against := row[name])]
    texts = dict.fromkeys(text for _, against in judged for text in against["perplexity"])
    several = len({row["experiment"] for row in flat}) > 1
    return [
        {
            "run": f"{row['experiment']}: {row_name(row)}" if several else row_name(row),
            "compared with": against["from"],
            **{f"perplexity, {text_title(text)}": ratio(against["perplexity"].get(text)) for text in texts},
            **{_with_unit(score): points(against["scores"].get(score), *FORMS[score]) for score in SCORES},
            "accuracy, tasks above chance (points)": points(against.get("above_chance")),
        }
        for row, against in judged
    ]


def _with_unit(score: str) -> str:
    title, unit = TITLES[score].lower(), UNITS[score]
    return title if title == unit else f"{title} ({unit})"


def _of_tasks(row: dict[str, Any]) -> str:
    return f" ({len(row['scores'])} tasks)" if row["scores"] else ""


def _measured(row: dict[str, Any]) -> str:
    """The row whose speed and memory were measured: models of the same shape are equally fast."""
    return MISSING if row["tokens_per_second"] is None else str(row["timed_as"] or "itself")


def _timed(flat: list[dict[str, Any]], name: str, digits: int) -> list[str]:
    """A speed or memory value for each row, with the original's where it was timed again."""
    return _with_original(flat, lambda timed: timed.get(name), digits)


def _with_original(
    flat: list[dict[str, Any]], value: Callable[[dict[str, Any]], float | None], digits: int
) -> list[str]:
    """A value of each row, plus the original's from the same session if that differs from its own row.

    A machine's speed varies over time, so only values measured in turn are comparable.

    Args:
        value: finds it in a row, and in a row's `timed_with`.
    """
    originals = {row["experiment"]: number(value(row), digits) for row in flat if row["run"] == BASELINE}
    cells = []
    for row in flat:
        original = number(value(row["timed_with"]), digits)
        differs = original not in (MISSING, originals.get(row["experiment"])) and row["run"] != BASELINE
        cells.append(number(value(row), digits) + (f" (original: {original})" if differs else ""))
    return cells


def interval(entry: dict[str, Any] | None, digits: int = 1) -> str:
    """A perplexity or a continuous score with its 95 % interval; a perplexity of a single text has none."""
    if not entry:
        return MISSING
    value, *ends = (_short(entry[name], digits) for name in ("value", "low", "high") if name in entry)
    return f"{value} [{', '.join(ends)}]" if ends and entry.get("texts") != 1 else value


def _short(value: float, digits: int) -> str:
    """A number, shortened if it is huge: perplexities of broken models reach millions."""
    return f"{value:,.{digits}f}" if value < 1000 else f"{value:,.0f}" if value < 100_000 else f"{value:.1e}"


def speedup(entry: dict[str, Any] | None) -> str:
    """A speedup with its smallest and largest ratio; without a value of its own if it may be none."""
    if not entry:
        return MISSING
    shown = f"{entry['value']:.2f}" if is_shown(entry, 1.0) else UNCLEAR
    return f"{shown} [{entry['low']:.2f}, {entry['high']:.2f}]"


def _score(entry: dict[str, Any] | None) -> str:
    return percent(entry["value"], entry["stderr"]) if entry else MISSING


def percent(value: float | None, stderr: float | None) -> str:
    """A share with its 95 % interval, in percent."""
    if value is None or stderr is None:
        return MISSING
    share, low, high = percent_interval(value, stderr)
    return f"{share:.1f} [{low:.1f}, {high:.1f}]"


def points(entry: dict[str, Any] | None, factor: float = 100, digits: int = 1) -> str:
    """A difference with its interval; of shares, in points, unless another factor is given.

    Without a value of its own if the interval contains 0, and nothing but that from too few documents.
    """
    if entry is None or entry["difference"] is None:
        return MISSING
    if entry.get("verdict") == TOO_FEW:
        return TOO_FEW
    ends = [factor * entry[name] for name in ("difference", "low", "high")]
    digits = digits_for(ends[1:], digits)
    value, low, high = (f"{end:+,.{digits}f}" for end in ends)
    return f"{value if is_shown(entry) else UNCLEAR} [{low}, {high}]"


def ratio(entry: dict[str, Any] | None) -> str:
    """A ratio of perplexities with its interval, as in "× 1.09 [1.04, 1.14]"; older results compare unpaired.

    If the interval contains 1, it is shown without a value, as in "unclear × [0.98, 1.04]".
    """
    if not entry:
        return MISSING
    value, low, high = (_times(entry[name]) for name in ("ratio", "low", "high"))
    shown = f"× {value}" if is_shown(entry, 1.0) else f"{UNCLEAR} ×"
    return f"{shown} [{low}, {high}]{'' if entry['paired'] else ' (unpaired)'}"


def _times(value: float) -> str:
    if value > 10_000:
        return "over 10,000"
    return f"{value:,.3f}" if 0.95 < value < 1.05 else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def number(value: float | None, digits: int) -> str:
    """A number with this many decimals; a dash if there is none."""
    return MISSING if value is None else f"{value:,.{digits}f}"
