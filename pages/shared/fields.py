"""Number fields that say what is wrong with a number, and which one counts instead."""

from __future__ import annotations

from typing import Any, TypeVar

import streamlit as st

N = TypeVar("N", int, float)


def number(label: str, low: N, high: N, default: N, *, place: Any = st, **settings: Any) -> N:
    """A number within its limits.

    Streamlit's own limits turn the field red without a word, and the former number goes on to count unseen.

    Args:
        place: where the field stands: a column, or the page.
        settings: as `st.number_input` takes them.
    """
    typed: N = place.number_input(label, value=default, **settings)
    used, problem = min(max(typed, low), high), place.empty()  # always there, so that no field below moves
    if used != typed:
        problem.error(f"{typed:,} is out of range: {low:,} to {high:,}. {used:,} is used.", icon=":material/error:")
    return used
