"""A run's verdict in words, and the numbers behind it, each with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from pages.shared.frame import plain
from swm.evaluation.paired import ACCURACY, CHOICE_LOGPROB
from swm.reporting.compare import compare, flat_rows
from swm.reporting.glossary import FORMS, TERMS, TITLES, UNITS
from swm.reporting.judged import judged, key_of
from swm.reporting.table import MISSING, number, points
from swm.reporting.verdict import digits_for, independent_text, reference_of
from swm.workspace.experiments import Experiment

SPEED = "During generation, measured in turn with the original. Below: the range over repetitions."
WIDTHS = (2, 2, 3, 4, 3)  # of the numbers' columns, the longest label widest
SIZE = "Size of the weights on disk."


def judged_rows(experiment: Experiment, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of an experiment as from `judged`, cached until one of its files changes; other rows are not computed."""
    keys = tuple(key_of(row) for row in rows if row["experiment"] == experiment.name)
    return _judged(str(experiment.folder), experiment.results_changed(), keys) if keys else []


@st.cache_data(max_entries=16, show_spinner=False)
def _judged(
    folder: str, changed: list[tuple[str, int]], keys: tuple[tuple[str, str, str], ...]
) -> list[dict[str, Any]]:
    rows = flat_rows(judged(compare(Experiment(Path(folder))), keys))
    return [row for row in rows if key_of(row) in keys]


def show_verdict(row: dict[str, Any]) -> None:
    """The verdict on a row of `judged` as a sentence, then its main numbers with the differences behind it."""
    st.markdown(f"##### {plain(row['verdict'])}")
    against = reference_of(row)
    metrics = [
        ("Speed", *_speed(row), SPEED),
        ("Size", f"{row['size_bytes'] / 2**20:,.0f} MiB", _smaller(row), SIZE),
        _perplexity(row, against),
        ("Choice log-probability", *_score(row, against, CHOICE_LOGPROB), TERMS["choice_logprob"]),
        ("Accuracy", *_score(row, against, ACCURACY), TERMS["accuracy"]),
    ]
    for column, (label, value, change, help_text) in zip(st.columns(WIDTHS), metrics, strict=True):
        column.metric(label, value, change, "off", help=help_text, delta_arrow="off", width="stretch")
    if against:
        st.caption(
            f"Differences from {plain(against['from'])}, with 95 % intervals over the same documents or "
            "segments of text. Speed and size: relative to the original."
            f"{_against_original(row)}",
            help=TERMS["control"],
        )


def _against_original(row: dict[str, Any]) -> str:
    """What a run with a control gained or lost against the original, LoRA's own effect included."""
    original = row["against_original"] if row["against_control"] else None
    if not original or not original["scores"]:
        return ""
    names = (CHOICE_LOGPROB, ACCURACY)
    changes = (
        f"{TITLES[name].lower()} {points(original['scores'].get(name), *FORMS[name])} {UNITS[name]}" for name in names
    )
    return f" Against the original without training, LoRA's own effect included: {', '.join(changes)}."


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
