"""A tour of five steps over the pages of a shipped experiment; its place is in address (?tour=2) and browser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import streamlit as st

from pages.shared.navigation import CHOSEN, go_to
from swm.disk.names import EXAMPLE
from swm.workspace.experiments import Experiment

DEMO = f"{EXAMPLE}demo"
SCRIPT = Path(__file__).parents[2] / "assets" / "tour.js"


@dataclass(frozen=True)
class Step:
    """A step: its page and the part of it to look at (CSS; ">>>" steps into a component)."""

    page: str
    page_title: str
    part: str
    title: str
    text: str


TOUR = (
    Step(
        "pages/redundancy.py",
        "Redundancy",
        ".st-key-redundancy_map",
        "Many layers do nearly the same",
        "Each cell compares two layers of the model. Bright means alike. Along the diagonal lies a long bright band: "
        "neighbours that repeat each other.",
    ),
    Step(
        "pages/preview.py",
        "Preview",
        ".st-key-preview_live >>> .tried",
        "Drag the slider",
        "Neighbours merge as long as the model's output stays this similar to the original's. Left: fewer layers, and "
        "higher perplexity (the model is less sure of the next word). The ribbon shows which layers become one.",
    ),
    Step(
        "pages/preview.py",
        "Preview",
        ".st-key-preview_live >>> .said-box",
        "Read what the model writes",
        "The same prompts, continued by the original and by the smaller model, which nothing has repaired yet. Drag "
        "the slider to the left and follow how the words break.",
    ),
    Step(
        "pages/compare.py",
        "Compare",
        ".st-key-verdict",
        "What it cost, in one sentence",
        "This plan was chosen by search, and its model healed (retrained for some minutes with LoRA). What it still "
        "lost is shown with its uncertainty in brackets, against the original after the same training.",
    ),
    Step(
        "pages/report.py",
        "Report",
        ".st-key-report_preview",
        "Show it to others",
        "One page that opens offline: what was removed, what that gained and cost. For a model of your own, start on "
        "Experiment: a folder, a GGUF file or a name on the Hugging Face hub.",
    ),
)


def offer_tour(experiments: list[Experiment], greeting: str = "") -> None:
    """The button that starts the tour, unless it is on or its experiment is not there.

    Args:
        greeting: before its description; makes the button stand out.
    """
    if DEMO in {experiment.name for experiment in experiments} and not st.session_state.get("tour"):
        ended = "tour_ended" in st.session_state
        told = _browser({"place": 0} if ended else {}, "tour_place").get("place")
        kept = 0 if ended else told
        left_at = kept if isinstance(kept, int) and 1 < kept <= len(TOUR) else 0
        with st.container(horizontal=True, vertical_alignment="center"):
            kind: Literal["primary", "secondary"] = "primary" if greeting else "secondary"
            if left_at and st.button(
                f"Go on with the tour, step {left_at}", icon=":material/tour:", type=kind, key="home_tour_on"
            ):
                start_tour(left_at)
            if st.button(
                "Take the tour again" if left_at else "Take the tour",
                icon=None if left_at else ":material/tour:",
                type="secondary" if left_at else kind,
                key="home_tour",
            ):
                start_tour()
            st.markdown(f":gray[{greeting}Five steps over a finished example, about a minute.]")


def start_tour(step: int = 1) -> None:
    """Begin with a step, on the shipped experiment."""
    st.session_state["tour_before"] = st.session_state.get(CHOSEN)
    _go(step)


def show_tour(page_title: str, experiments: list[Experiment]) -> None:
    """The card of the current step, if the tour is on, and a ring around the part it speaks of."""
    asked = st.query_params.get("tour", "")
    if asked.isdecimal() and 1 <= int(asked) <= len(TOUR) and DEMO in {experiment.name for experiment in experiments}:
        if "tour" not in st.session_state:
            st.session_state["tour_before"] = None
            _go(int(asked))
        st.session_state["tour"] = int(asked)
    number = st.session_state.get("tour")
    if not number:
        return
    step = TOUR[number - 1]
    with st.container(key="tour", border=True):
        st.caption(f"Tour, step {number} of {len(TOUR)}")
        if page_title != step.page_title:
            st.markdown("You have left the tour.")
            if st.button("Back to the tour", key="tour_back_to"):
                _go(number)
        else:
            st.markdown(f"**{step.title}.** {step.text}")
        with st.container(horizontal=True):
            if number > 1 and st.button("Back", key="tour_back"):
                _go(number - 1)
            if number < len(TOUR) and st.button("Next", type="primary", key="tour_next"):
                _go(number + 1)
            last = number == len(TOUR)
            if st.button("Done" if last else "End the tour", type="primary" if last else "secondary", key="tour_end"):
                _end()
    part = step.part if page_title == step.page_title else ""
    _browser({"part": part, "place": number}, "tour_ring")


def _browser(data: dict[str, Any], key: str) -> Any:
    """What draws the ring, and keeps the place in the browser: `place` in `data` is kept, without it it is told."""
    script = SCRIPT.read_text(encoding="utf-8")
    component = st.components.v2.component("tour", html="<div></div>", js=script)
    return component(data=data, key=key, on_place_change=lambda: None)


def _go(number: int) -> None:
    st.session_state["tour"] = number
    st.session_state.pop("tour_ended", None)
    st.session_state[CHOSEN] = DEMO
    st.switch_page(TOUR[number - 1].page, query_params={"tour": str(number), "experiment": DEMO})


def _end() -> None:
    st.session_state.pop("tour", None)
    st.session_state["tour_ended"] = True
    go_to("app.py", st.session_state.pop("tour_before", None) or DEMO)
