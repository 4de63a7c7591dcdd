"""The layers before and after merging, drawn in the browser: the picture alone, or with the threshold's slider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from swm.experiments import Experiment
from swm.plan import MergePlan
from swm.search import ThresholdPath
from swm.view import HELP, TEMPLATES, path_view, plan_view


def path_and_view(experiment: Experiment, rule: str) -> tuple[ThresholdPath, dict[str, Any]]:
    """The path as far as it is computed, and what `live_preview` draws of it; read again only when it has changed."""
    return _path_and_view(str(experiment.folder), rule, experiment.path_changed(rule), experiment)


@st.cache_resource(max_entries=6, show_spinner=False)
def _path_and_view(
    folder: str, rule: str, changed: int, _experiment: Experiment
) -> tuple[ThresholdPath, dict[str, Any]]:
    path = _experiment.path(rule) or ThresholdPath(_experiment.layer_count, rule)
    return path, path_view(path, _experiment.model_facts, _experiment.cost())


def layers_picture(plan: MergePlan, facts: dict[str, Any], key: str) -> None:
    """A plan's layers before and after."""
    _component()(data={"plan": plan_view(plan, facts)}, key=key)


def live_preview(
    view: dict[str, Any],
    empty: dict[str, Any],
    threshold: float,
    hand: dict[str, Any] | None,
    key: str,
    on_threshold: Callable[[], None],
    on_windows: Callable[[], None],
) -> None:
    """Slider, staircase, numbers and layers of every plan of a path.

    What the user chose stands in `st.session_state[key]`: `threshold`, and `windows` as text while they are edited by
    hand.
    """
    data = {**view, "layers": empty["layers"], "empty": empty, "threshold": threshold, "hand": hand, "help": HELP}
    _component()(data=data, key=key, on_threshold_change=on_threshold, on_windows_change=on_windows)


def _component() -> Any:
    return st.components.v2.component(
        "layers",
        html='<div class="layer-view"></div>',
        css=(TEMPLATES / "layers.css").read_text(encoding="utf-8"),
        js=(TEMPLATES / "layers.js").read_text(encoding="utf-8"),
    )
