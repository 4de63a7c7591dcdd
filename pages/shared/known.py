"""Every plan whose perplexity is known: their chart, and the smallest within the loss that Preview's flag allows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from pages.shared.live import hand_key
from swm.disk.files import matching, written_at
from swm.plan import MergePlan
from swm.reporting.known_plans import (
    BY_MEMORY,
    BY_SPEED,
    ORIGINAL,
    KnownPlan,
    best_tried,
    known_plans,
    plans_chart,
    with_front,
)
from swm.reporting.names import text_name
from swm.reporting.preview import WITHIN
from swm.workspace.experiments import Experiment


def windows_of(plan: MergePlan) -> str:
    return ",".join(map(str, plan.windows))


def take_point(experiment: Experiment) -> None:
    """Show the plan whose point was clicked."""
    points = st.session_state["preview_plans"]["selection"]["points"]
    if points and (chosen := points[0].get("customdata")):
        show_plan(experiment, *chosen[:2])


def show_plan(experiment: Experiment, windows: str, rule: str) -> None:
    """Show a plan that may lie on no path, as one set by hand."""
    st.session_state["rule"], st.session_state["preview_door"] = rule, "threshold"
    st.session_state[hand_key(experiment)] = windows


@st.cache_data(max_entries=8, show_spinner=False)
def cached_plans(folder: str, changed: list[tuple[str, int]]) -> tuple[list[KnownPlan], bool]:
    """The known plans of an experiment, and whether a search by best tried some; until one of their files changes."""
    experiment = Experiment(Path(folder))
    return known_plans(experiment), bool(best_tried(experiment))


def plans_of(experiment: Experiment) -> tuple[list[KnownPlan], bool]:
    """The known plans of an experiment, and whether a search by best tried some of them."""
    files = [file for name in ("path", "plans") for file in matching(experiment.folder, f"{name}/*.json")]
    changed = sorted((str(file), written_at(file)) for file in files)
    more = [(name, experiment.changed(name)) for name in ("cost.json", "tried.json")]
    return cached_plans(str(experiment.folder), [*changed, *more])


def offer_smaller(experiment: Experiment, view: dict[str, Any]) -> None:
    """A button for the smallest known plan within the loss that the slider's flag allows, if it beats the flag's."""
    (plans, _), mark = plans_of(experiment), view["mark"]
    flagged = experiment.layer_count if mark is None else view["plans"][view["steps"][mark][2]]["left"]
    original = next((plan.perplexity for plan in plans if plan.method == ORIGINAL), 0.0)
    within = [plan for plan in plans if plan.perplexity <= WITHIN * original and not plan.estimated]
    least = min(within, key=lambda plan: (plan.plan.layers_left, plan.perplexity), default=None)
    if least and least.plan.layers_left < flagged:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(
                f"{least.plan.layers_left} layers by {least.method}, × {least.perplexity / original:.2f}",
                on_click=show_plan,
                args=(experiment, windows_of(least.plan), least.plan.rule),
                key="preview_smaller",
            )
            st.caption(f"A plan with fewer layers also stays within {WITHIN} times the original's perplexity.")


def show_known_plans(experiment: Experiment) -> None:
    """Perplexity against size or speed of every plan known; a click on one shows it above."""
    plans, searched = plans_of(experiment)
    if len(plans) < 3:
        return
    st.subheader("All plans known so far", anchor=False)
    axes = [BY_MEMORY, BY_SPEED] if any(plan.speed for plan in plans) else [BY_MEMORY]
    by = st.segmented_control(
        "Against", axes, default=axes[0], required=True, key="preview_against", bind="query-params"
    )
    figure = plans_chart(with_front(plans, by), by, WITHIN, text_name(experiment.settings.texts))
    st.plotly_chart(figure, key="preview_plans", on_select=partial(take_point, experiment), selection_mode="points")
    tried = (
        "A search by best for few layers passes through all depths above: the best plan that it tried at each is there "
        "as well. "
        if searched
        else ""
    )
    st.caption(
        f"Click a point to see its plan above, with its windows, its words and the way to merge it. {len(plans) - 1} "
        f"plans, all measured on the same calibration text before healing; those of rules fit and scale with the quick "
        f"repair of a search. {tried}"
        "Perplexities above 20 times the lowest are not drawn."
    )
