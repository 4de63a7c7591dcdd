"""The layers before and after merging, drawn in the browser: alone, or with the threshold slider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from swm.plan import DEFAULT_RULE, MergePlan, Window
from swm.reporting.preview import HELP, TEMPLATES, WITHIN, path_view, plan_view
from swm.search.kept_path import kept_answers, kept_path
from swm.search.known_target import Found
from swm.search.threshold_path import PlanAt, ThresholdPath
from swm.settings import DEFAULT_THRESHOLD
from swm.workspace.experiments import Experiment


def path_and_view(experiment: Experiment, rule: str) -> tuple[ThresholdPath, dict[str, Any]]:
    """The path as far as it is computed, and its data for `live_preview`; cached until the path's file changes."""
    files = (f"path/{rule}.json", f"answers/{rule}.json", "cost.json")
    changed = tuple(experiment.changed(file) for file in files)
    return _path_and_view(str(experiment.folder), rule, changed, experiment)


@st.cache_resource(max_entries=6, show_spinner=False)
def _path_and_view(
    folder: str, rule: str, changed: tuple[int, ...], _experiment: Experiment
) -> tuple[ThresholdPath, dict[str, Any]]:
    path = kept_path(_experiment, rule) or ThresholdPath(_experiment.layer_count, rule)
    answers = kept_answers(_experiment, rule)
    view = path_view(path, _experiment.model_facts, _experiment.cost(), answers)
    return path, {**view, "opening": opening_threshold(path)}


def layers_picture(plan: MergePlan, facts: dict[str, Any], key: str) -> None:
    """Draw a plan's layers before and after merging."""
    _component()(data={"plan": plan_view(plan, facts)}, key=key)


def remember_shown(experiment: Experiment, shown: Found | PlanAt | None) -> None:
    """Keep the windows that the Preview page shows, for other pages."""
    st.session_state[f"preview_shown_{experiment.name}"] = shown.plan.windows if shown else ()


def current_windows(experiment: Experiment) -> tuple[Window, ...]:
    """The windows that the Preview page showed last, or would show first; none if they are not computed yet."""
    windows: tuple[Window, ...] | None = st.session_state.get(f"preview_shown_{experiment.name}")
    if windows is not None:
        return windows
    path, view = path_and_view(experiment, DEFAULT_RULE)
    step = path.plan_at(view["opening"])
    return step.plan.windows if step else ()


def opening_threshold(path: ThresholdPath) -> float:
    """The threshold to show first: that of the smallest plan within the loss that the slider's flag allows, else of the
    plan that loses least; of the plan by default if no perplexity is known."""
    if within := path.smallest_within(WITHIN):
        return within.inside
    measured = [step for step in path.intervals() if step.plan.windows and step.perplexity]
    least = min(measured, key=lambda step: step.perplexity or 0.0, default=None)
    return least.inside if least else DEFAULT_THRESHOLD


def hand_key(experiment: Experiment) -> str:
    """Key of the experiment's hand-set windows in the session state."""
    return f"preview_windows_{experiment.name}"


def live_preview(
    view: dict[str, Any], key: str, on_threshold: Callable[[], None], on_windows: Callable[[], None]
) -> None:
    """Draw the slider, and the staircase, numbers and layers of every plan of a path.

    Args:
        view: from `path_and_view`, plus `name` (experiment and rule; a pinned plan is dropped when it changes),
            `text` (that perplexities are of), `threshold`, `hand` (the plan set by hand, or None) and `empty` (the plan
            without windows).
        on_threshold, on_windows: called after the user's choice, which is then in `st.session_state[key]`: `threshold`,
            or `windows` with the text under `by_hand`.
    """
    data = {**view, "layers": view["empty"]["layers"], "help": HELP}
    _component()(data=data, key=key, on_threshold_change=on_threshold, on_windows_change=on_windows)


def _component() -> Any:
    return st.components.v2.component(
        "layers",
        html='<div class="layer-view"></div>',
        css=(TEMPLATES / "layers.css").read_text(encoding="utf-8"),
        js=(TEMPLATES / "layers.js").read_text(encoding="utf-8"),
    )
