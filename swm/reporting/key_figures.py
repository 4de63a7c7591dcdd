"""The numbers behind a run's verdict, each with its change and the interval of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swm.evaluation.paired import ACCURACY, CHOICE_LOGPROB
from swm.reporting.glossary import FORMS, TERMS
from swm.reporting.table import MISSING, number, points
from swm.reporting.verdict import digits_for, independent_text, reference_of

SPEED = "During generation, measured in turn with the original. Below: the range over repetitions."
SIZE = "Size of the weights on disk."


@dataclass(frozen=True)
class KeyFigure:
    """A number as people read it, its change (None if unknown or none), and a sentence on what it means."""

    label: str
    value: str
    change: str | None
    help: str


def key_figures(row: dict[str, Any]) -> dict[str, KeyFigure]:
    """Speed, size, perplexity and scores of a row of `judged`, by name."""
    against = reference_of(row)
    return {
        "speed": KeyFigure("Speed", *_speed(row), SPEED),
        "size": KeyFigure("Size", f"{row['size_bytes'] / 2**20:,.0f} MiB", _smaller(row), SIZE),
        "perplexity": KeyFigure(*_perplexity(row, against)),
        CHOICE_LOGPROB: KeyFigure(
            "Choice log-probability", *_score(row, against, CHOICE_LOGPROB), TERMS["choice_logprob"]
        ),
        ACCURACY: KeyFigure("Accuracy", *_score(row, against, ACCURACY), TERMS["accuracy"]),
    }


def _speed(row: dict[str, Any]) -> tuple[str, str | None]:
    speedup = row["speedup"]
    return (
        (f"× {speedup['value']:.2f}", f"{speedup['low']:.2f} to {speedup['high']:.2f}") if speedup else (MISSING, None)
    )


def _smaller(row: dict[str, Any]) -> str | None:
    change = row["deltas"]["size_bytes"]
    return f"{100 * change / (row['size_bytes'] - change):+.0f} %" if change else None


def _perplexity(row: dict[str, Any], against: dict[str, Any] | None) -> tuple[str, str, str | None, str]:
    """The perplexity that the verdict names, with its change."""
    ratios = against["perplexity"] if against else {}
    text = independent_text(row, list(ratios or row["perplexities"]))
    value = number(row["perplexities"][text]["value"], 1) if text else MISSING
    change = None
    if text in ratios:
        ends = [100 * (ratios[text][name] - 1) for name in ("ratio", "low", "high")]
        digits = digits_for(ends[1:], 0 if max(map(abs, ends)) >= 10 else 1)
        change = "{:+,.{d}f} % [{:+,.{d}f}, {:+,.{d}f}]".format(*ends, d=digits)
    return f"Perplexity, {text}" if text else "Perplexity", value, change, TERMS["perplexity"]


def _score(row: dict[str, Any], against: dict[str, Any] | None, score: str) -> tuple[str, str | None]:
    """The average of a score and its change; accuracy in percent and points."""
    if score == ACCURACY:
        shown = MISSING if row["average"] is None else f"{100 * row['average']:.1f} %"
    else:
        shown = number(row["average_choice_logprob"], 2)
    entry = against["scores"].get(score) if against else None
    return shown, points(entry, *FORMS[score]) if entry else None
