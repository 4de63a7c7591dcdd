"""A run's verdict in words, and the numbers behind it, each with its interval."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from pages.shared.plain import plain
from swm.evaluation.paired import ACCURACY, CHOICE_LOGPROB
from swm.reporting.glossary import FORMS, TERMS, TITLES, UNITS
from swm.reporting.judged import judged_over_seeds
from swm.reporting.key_figures import COSTS, GAINS, KeyFigure, in_llama_cpp, key_figures
from swm.reporting.names import text_name
from swm.reporting.numbers import MISSING, points, ratio
from swm.reporting.row import Row
from swm.reporting.verdict import in_short, independent_text, reference
from swm.workspace.experiments import Experiment


def judged_rows(experiment: Experiment, rows: list[Row]) -> list[Row]:
    """Rows of an experiment as from `judged_over_seeds`, in its own order, cached until one of its files
    changes; other rows are not computed."""
    keys = tuple(row.key for row in rows if row.experiment == experiment.name)
    return _judged(str(experiment.folder), experiment.results_changed(), keys) if keys else []


@st.cache_data(max_entries=16, show_spinner=False)
def _judged(folder: str, changed: list[tuple[str, int]], keys: tuple[tuple[str, str, str], ...]) -> list[Row]:
    return judged_over_seeds(Experiment(Path(folder)), keys)


def show_verdict(row: Row) -> None:
    """The verdict on a row of `judged`: what it gained, what it lost in everyday words, and against what."""
    gained, cost = row.verdict or ("", "")
    short = in_short(row)
    lost = f"{plain(short)} {plain(reference(row))}." if short else plain(cost)
    st.markdown(f"##### {plain(gained)}\n\n{lost}")


def show_measured(row: Row) -> None:
    """The main numbers of a row of `judged`, with the differences behind its verdict."""
    against, figures = row.compared_with, key_figures(row)
    origins = ("original", against.reference) if against else ("", "")
    with st.container(horizontal=True, gap="medium", key="key_figures"):  # wraps where the page is narrow
        for names, origin in zip((GAINS, COSTS), origins, strict=True):
            with st.container(width="content", gap="xsmall"):
                control = TERMS["control"] if names == COSTS and row.against_control else None
                if origin:
                    st.caption(f"Against {plain(origin)}", width="content", help=control)
                show_figures([figures[name] for name in names])
    if against:
        st.caption(
            "Brackets are 95 % intervals over the same documents or segments of text. "
            f"{plain(in_llama_cpp(row))}{_against_original(row)}"
        )


def show_figures(figures: list[KeyFigure]) -> None:
    """Key figures side by side."""
    with st.container(horizontal=True, gap="medium", width="content"):
        for shown in (figure for figure in figures if figure.value != MISSING):
            st.metric(
                shown.label, shown.value, shown.change, "off", help=shown.help, delta_arrow="off", width="content"
            )


def _against_original(row: Row) -> str:
    """What a run with a control gained or lost against the original, the training's own effect included."""
    original = row.against_original if row.against_control else None
    if not original or not original.scores:
        return ""
    text = independent_text(row, list(original.perplexity))
    changes = [f"perplexity on {text_name(text)} {ratio(original.perplexity[text])}"] if text else []
    changes += [
        f"{TITLES[name].lower()} {points(original.scores.get(name), *FORMS[name])} {UNITS[name]}"
        for name in (CHOICE_LOGPROB, ACCURACY)
    ]
    return f" Against the original without training, the training's own effect included: {plain(', '.join(changes))}."
