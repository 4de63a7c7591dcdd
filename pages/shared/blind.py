"""Two answers side by side without names, a vote, and the tally."""

from __future__ import annotations

import random

import pandas as pd
import streamlit as st

from pages.shared.frame import shown_errors
from pages.shared.plain import plain
from swm.workspace.experiments import Experiment
from swm.workspace.votes import TIE, add_vote, tallies, votes


def blind_vote(experiment: Experiment, prompt: str, answers: dict[str, str]) -> None:
    """Two models' answers to a prompt as A and B, in an order drawn for each vote; who wrote which shows after it.

    Args:
        answers: of the models by name, two of them.
    """
    key = f"blind_{experiment.name}"
    asked = st.session_state.get(key)
    if not asked or (asked["prompt"], set(asked["order"])) != (prompt, set(answers)):
        asked = {"prompt": prompt, "order": random.sample(sorted(answers), 2), "voted": ""}
        st.session_state[key] = asked
    order, voted = asked["order"], asked["voted"]
    for column, letter, name in zip(st.columns(2, gap="medium"), "AB", order, strict=True):
        with column.container(border=True, height="stretch"):
            st.markdown(f"**{letter}**" + (f": {plain(name)}" if voted else ""))
            st.markdown(plain(answers[name].strip()) or "*ends here*")
    with st.container(horizontal=True, vertical_alignment="center"):
        if voted:
            st.markdown("Voted: " + ("no difference" if voted == TIE else f"**{plain(voted)}**"))
            if st.button("Vote again, in a new order", key="blind_again"):
                st.session_state.pop(key)
                st.rerun()
        elif winner := _clicked(order):
            with shown_errors():
                add_vote(experiment, prompt, (order[0], order[1]), winner)
            st.session_state[key] = {**asked, "voted": winner}
            st.rerun()
    show_tally(experiment)


def _clicked(order: list[str]) -> str:
    """The winner whose button was clicked; empty if none was."""
    choices = (("A is better", order[0]), ("No difference", TIE), ("B is better", order[1]))
    clicked = [winner for label, winner in choices if st.button(label, key=f"blind_{label}")]
    return clicked[0] if clicked else ""


def show_tally(experiment: Experiment) -> None:
    """How often each model won against another, with the interval of that share."""
    rows = [
        {
            "models": f"{tally.models[0]} against {tally.models[1]}",
            "won": f"{tally.wins[0]} to {tally.wins[1]}",
            "no difference": tally.ties,
            "share of the first": "–"
            if tally.share is None
            else f"{tally.share:.0%} [{tally.low:.0%}, {tally.high:.0%}]",
        }
        for tally in tallies(votes(experiment))
    ]
    if rows:
        st.table(pd.DataFrame(rows).set_index("models"))
        st.caption(
            "Votes on answers shown without names. Brackets: 95 % interval of the share (Wilson), votes without a "
            "difference left out. Votes on a few prompts say little about others."
        )
