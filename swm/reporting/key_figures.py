"""The numbers behind a run's verdict, each with its change and the interval of that."""

from __future__ import annotations

import math
from dataclasses import dataclass

from swm.evaluation.paired import ACCURACY, CHOICE_LOGPROB, TOO_FEW, UNDECIDED
from swm.reporting.glossary import FORMS, TERMS, TITLES
from swm.reporting.names import text_name
from swm.reporting.numbers import MISSING, number, points, speedup
from swm.reporting.row import Change, Differences, Row
from swm.reporting.verdict import UNCLEAR, digits_for, independent_text, is_shown, speed_words

SPEED = "During generation, measured in turn with the original{}. Below: the range over repetitions."
SIZE = "Size of the weights on disk{}."
GAINS, COSTS = ("speed", "size"), ("perplexity", CHOICE_LOGPROB, ACCURACY)  # key figures, by what they say


@dataclass(frozen=True)
class KeyFigure:
    """A number as people read it, its change (None if unknown or none), and a sentence on what it means."""

    label: str
    value: str
    change: str | None
    help: str


def key_figures(row: Row) -> dict[str, KeyFigure]:
    """Speed, size, perplexity and scores of a row of `judged`, by name; "a → b" is from its reference to the row."""
    against, timed = row.compared_with, timed_in(row)
    where = f", {timed}" if timed else ""
    kept = f", in {row.dtype}" if row.dtype else ""
    return {
        "speed": KeyFigure("Speed", *_speed(row), SPEED.format(where)),
        "size": KeyFigure("Size", *_size(row), SIZE.format(kept)),
        "perplexity": _perplexity(row, against),
        CHOICE_LOGPROB: _choice_probability(row, against),
        ACCURACY: _accuracy(row, against),
    }


def timed_in(row: Row) -> str:
    """Where the row's speed was measured, as in "in float32 on cpu with 2 threads"; empty if that is not known."""
    on = row.timed_on
    if not {"dtype", "device"} <= {*on}:
        return ""
    return f"in {on['dtype']} on {on['device']}" + (f" with {on['threads']} threads" if "threads" in on else "")


def in_llama_cpp(row: Row) -> str:
    """Size and speed of the row's GGUF file against the original's, where it is used; empty if not measured."""
    found = row.llama_cpp
    if not found or not found.get("baseline") or not found.get("speedup"):
        return ""
    before, after = (entry["size_bytes"] / 2**20 for entry in (found["baseline"], found))
    ratio = found["speedup"]
    fast = f"{speedup(ratio)} times as fast" if is_shown(ratio, 1.0) else speed_words(ratio)
    return f"In llama.cpp, as {found['type']} files: {before:,.0f} → {after:,.0f} MiB, {fast}."


def _speed(row: Row) -> tuple[str, str | None]:
    speedup = row.speedup
    if not speedup:
        return MISSING, None
    ends = f"{speedup['low']:.2f} to {speedup['high']:.2f}"
    return (f"× {speedup['value']:.2f}", ends) if is_shown(speedup, 1.0) else (UNCLEAR, f"× {ends}")


def _size(row: Row) -> tuple[str, str | None]:
    size, change = row.size_bytes, row.deltas["size_bytes"]
    if not change:
        return f"{size / 2**20:,.0f} MiB", None
    return f"{(size - change) / 2**20:,.0f} → {size / 2**20:,.0f} MiB", f"{100 * change / (size - change):+.0f} %"


def _perplexity(row: Row, against: Differences | None) -> KeyFigure:
    """The perplexity that the verdict names, with its change."""
    ratios = against.perplexity if against else {}
    text = independent_text(row, list(ratios or row.perplexities))
    if not text:
        return KeyFigure("Perplexity", MISSING, None, TERMS["perplexity"])
    value, change = row.perplexities[text]["value"], None
    shown = number(value, 1)
    if text in ratios:
        size, *ends = [100 * (ratios[text][name] - 1) for name in ("ratio", "low", "high")]
        digits = digits_for(ends, 0 if max(map(abs, ends)) >= 10 else 1)
        if is_shown(ratios[text], 1.0):
            shown = f"{number(value / ratios[text]['ratio'], 1)} → {shown}"
            change = "{:+,.{d}f} % [{:+,.{d}f}, {:+,.{d}f}]".format(size, *ends, d=digits)
        else:
            change = "{}: {:+,.{d}f} to {:+,.{d}f} %".format(UNCLEAR, *ends, d=digits)
    return KeyFigure(f"Perplexity, {text_name(text)} (lower is better)", shown, change, TERMS["perplexity"])


def _choice_probability(row: Row, against: Differences | None) -> KeyFigure:
    """The change of the right choice's probability, as a geometric mean; without a reference its logarithm."""
    entry = against.scores.get(CHOICE_LOGPROB) if against else None
    if not entry:
        value = number(row.average_choice_logprob, 2)
        return KeyFigure(TITLES[CHOICE_LOGPROB], value, None, TERMS["choice_logprob"])
    shown = f"{100 * math.expm1(entry['difference']):+.0f} %"
    change = f"{points(entry, *FORMS[CHOICE_LOGPROB])} nats"
    if entry["verdict"] == UNDECIDED:
        shown, change = UNCLEAR, "{:+.0f} to {:+.0f} %".format(*(100 * math.expm1(entry[e]) for e in ("low", "high")))
    if entry["verdict"] == TOO_FEW:
        shown, change = MISSING, _too_few(entry)
    return KeyFigure("Probability of the right choice", shown, change, TERMS["choice_logprob"] + _levels(row, entry))


def _levels(row: Row, entry: Change) -> str:
    """Where the logarithm went from and to, and where guessing is: a change alone does not show how near that is."""
    chances = _chances(row)
    if row.average_choice_logprob is None or not chances:
        return ""
    after, guess = row.average_choice_logprob, math.fsum(map(math.log, chances)) / len(chances)
    return (
        f" Here from {after - entry['difference']:.2f} to {after:.2f} nats, averaged over tasks; guessing gives "
        f"{guess:.2f}. Long answers weigh more, since the likelihoods of all their tokens are multiplied."
    )


def _chances(row: Row) -> list[float]:
    """The accuracy of guessing on each task; empty if one is not known."""
    chances = [score.get("chance") for score in row.scores.values()]
    return [] if None in chances else [chance for chance in chances if chance is not None]


def _accuracy(row: Row, against: Differences | None) -> KeyFigure:
    """Average accuracy in percent, the score of guessing on the same tasks, and the change in points."""
    levels = _chances(row)
    title = f"Accuracy (guessing: {100 * sum(levels) / len(levels):.0f} %)" if levels else "Accuracy"
    if row.average is None:
        return KeyFigure(title, MISSING, None, TERMS["accuracy"])
    shown, entry = f"{100 * row.average:.1f} %", against.scores.get(ACCURACY) if against else None
    change = None
    if entry and entry["verdict"] == TOO_FEW:
        shown, change = MISSING, _too_few(entry)
    elif entry and entry["verdict"] == UNDECIDED:
        change = "{}: {:+.1f} to {:+.1f} points".format(UNCLEAR, *(100 * entry[end] for end in ("low", "high")))
    elif entry:
        shown = f"{100 * (row.average - entry['difference']):.1f} → {shown}"
        change = f"{points(entry, *FORMS[ACCURACY])} points"
    return KeyFigure(title, shown, change, TERMS["accuracy"])


def _too_few(entry: Change) -> str:
    return f"too few questions: {entry['fewest']} per task"
