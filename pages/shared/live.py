"""The layers before and after merging, drawn in the browser: the picture alone, or with the threshold's slider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from swm.plan import DEFAULT_RULE, MergePlan, Window, parse_windows
from swm.reporting.preview import HELP, TEMPLATES, path_view, plan_view
from swm.search.kept_path import kept_path
from swm.search.threshold_path import ThresholdPath
from swm.workspace.experiments import Experiment

DEFAULT_THRESHOLD = 0.9


def path_and_view(experiment: Experiment, rule: str) -> tuple[ThresholdPath, dict[str, Any]]:
    """The path as far as it is computed, and what `live_preview` draws of it; read again only when it has changed."""
    changed = experiment.changed(f"path/{rule}.json"), experiment.changed("cost.json")
    return _path_and_view(str(experiment.folder), rule, changed, experiment)


@st.cache_resource(max_entries=6, show_spinner=False)
def _path_and_view(
    folder: str, rule: str, changed: tuple[int, int], _experiment: Experiment
) -> tuple[ThresholdPath, dict[str, Any]]:
    path = kept_path(_experiment, rule) or ThresholdPath(_experiment.layer_count, rule)
    return path, path_view(path, _experiment.model_facts, _experiment.cost())


def layers_picture(plan: MergePlan, facts: dict[str, Any], key: str) -> None:
    """A plan's layers before and after."""
    _component()(data={"plan": plan_view(plan, facts)}, key=key)


def current_windows(experiment: Experiment) -> tuple[Window, ...]:
    """The windows that the preview page shows now; none while they are not computed."""
    rule = st.session_state.get("rule", DEFAULT_RULE)
    by_hand = st.session_state.get(hand_key(experiment))
    if by_hand is not None:
        return parse_windows(by_hand)
    step = path_and_view(experiment, rule)[0].plan_at(st.session_state.get("preview_threshold", DEFAULT_THRESHOLD))
    return step.plan.windows if step else ()


def hand_key(experiment: Experiment) -> str:
    """Where the windows set by hand stand; they are of one experiment."""
    return f"preview_windows_{experiment.name}"


def live_preview(
    view: dict[str, Any], key: str, on_threshold: Callable[[], None], on_windows: Callable[[], None]
) -> None:
    """Slider, staircase, numbers and layers of every plan of a path.

    Args:
        view: as `path_and_view` gives it, and `name` (of experiment and rule: a pinned plan is let go when it changes),
            `threshold`, `hand` (the plan set by hand, or None) and `empty` (the plan without windows).
        on_threshold, on_windows: called when the user chose; `st.session_state[key]` then has what: `threshold`, or
            `windows` with the text under `by_hand`.
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
