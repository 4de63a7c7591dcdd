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
from swm.reporting.key_figures import key_figures
from swm.reporting.table import points
from swm.reporting.verdict import reference_of
from swm.workspace.experiments import Experiment


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
    with st.container(horizontal=True, gap="medium", key="key_figures"):  # wraps where the page is narrow
        for shown in key_figures(row).values():
            st.metric(
                shown.label, shown.value, shown.change, "off", help=shown.help, delta_arrow="off", width="content"
            )
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
