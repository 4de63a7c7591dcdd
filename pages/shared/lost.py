"""What models lost: the rise of each ability's bits against the original, on Compare."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from pages.shared.plain import plain
from swm.reporting.abilities import lost_words, profile_of
from swm.reporting.ability_charts import profile_chart
from swm.reporting.palette import row_colours
from swm.reporting.row import Row

MOST_MODELS = 6


def show_lost(rows: Mapping[str, Row], judged: str) -> None:
    """The models whose abilities were measured, in a dot plot; and a sentence on the judged one.

    Args:
        rows: by label.
    """
    profiles = {label: found for label, row in rows.items() if (found := profile_of(row))}
    if not profiles:
        return
    st.subheader("What it keeps and what it loses", anchor=False)
    if judged in profiles and (said := lost_words(rows[judged])):
        st.markdown(f"**{plain(judged)}.** {plain(said)}")
    shown = {judged: profiles[judged]} if judged in profiles else {}
    shown |= {label: found for label, found in profiles.items() if label not in shown}
    shown = dict(list(shown.items())[:MOST_MODELS])
    colours = row_colours([rows[label] for label in shown])
    st.plotly_chart(
        profile_chart(shown, colours),
        key="compare_lost",
        alt="Rise of each ability's bits against the original, a dot for each model.",
    )
    st.caption(
        "Bits per byte of the right answer against the original, on requests that no plan was chosen by; lines are "
        "95 % intervals over requests."
        + (f" {len(profiles) - len(shown)} more models are not drawn." if len(profiles) > len(shown) else "")
    )
