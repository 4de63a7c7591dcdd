"""A run's verdict in words, and the numbers behind it, each with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from pages.shared.frame import plain
from swm.reporting.compare import compare
from swm.reporting.glossary import TERMS
from swm.reporting.judged import judged
from swm.reporting.table import MISSING, number
from swm.reporting.verdict import independent_text
from swm.workspace.experiments import Experiment

SPEED = "During generation, measured in turn with the original. Brackets: the range over repetitions."
WIDTHS = (2, 2, 3, 4, 3)  # of the numbers' columns, the longest label widest
SIZE = "Size of the weights on disk."


def judged_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """The rows of `judged` for all runs of an experiment, cached until one of its files changes."""
    return _judged(str(experiment.folder), experiment.results_changed())


@st.cache_data(max_entries=16, show_spinner=False)
def _judged(folder: str, changed: list[tuple[str, int]]) -> list[dict[str, Any]]:
    return judged(compare(Experiment(Path(folder))))


def show_verdict(row: dict[str, Any]) -> None:
    """The verdict on a row of `judged` as a sentence, then its main numbers with the differences behind it."""
    st.markdown(f"##### {plain(row['verdict'])}")
    against = row["against_control"] or row["against_original"]
    metrics = [
        ("Speed", *_speed(row), SPEED),
        ("Size", f"{row['size_bytes'] / 2**20:,.0f} MiB", _smaller(row), SIZE),
        _perplexity(row, against),
        ("Choice log-probability", *_score(row, against, "choice_logprob"), TERMS["choice_logprob"]),
        ("Accuracy", *_score(row, against, "accuracy"), TERMS["accuracy"]),
    ]
    for column, (label, value, change, help_text) in zip(st.columns(WIDTHS), metrics, strict=True):
        column.metric(label, value, change, "off", help=help_text, delta_arrow="off", width="stretch")
    if against:
        st.caption(
            f"Differences from {plain(against['from'])}, with 95 % intervals over the same documents or "
            "segments of text. Speed and size: relative to the original.",
            help=TERMS["control"],
        )


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
        digits = 0 if max(map(abs, ends)) >= 10 else 1
        change = "{:+,.{d}f} % [{:+,.{d}f}, {:+,.{d}f}]".format(*ends, d=digits)
    return f"Perplexity, {text}" if text else "Perplexity", value, change, TERMS["perplexity"]


def _score(row: dict[str, Any], against: dict[str, Any] | None, score: str) -> tuple[str, str | None]:
    """The average of a score and its change; accuracy in percent and points."""
    value, factor, digits = (row["average"], 100, 1) if score == "accuracy" else (row["average_choice_logprob"], 1, 2)
    entry = against["scores"].get(score) if against else None
    shown = MISSING if value is None else f"{factor * value:.{digits}f}{' %' if factor == 100 else ''}"
    if entry is None:
        return shown, None
    ends = [factor * entry[name] for name in ("difference", "low", "high")]
    return shown, "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*ends, d=digits)
