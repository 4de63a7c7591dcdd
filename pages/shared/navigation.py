"""Ways from page to page, and what their addresses carry."""

import math
from collections.abc import Sequence

import streamlit as st

from pages.shared.plain import plain

CHOSEN = "chosen_experiment"  # in the session: the name of the experiment that all pages show


def go_to(page: str, experiment: str) -> None:
    """Open a page with another experiment, or without a name with any; the frame selects it in the sidebar."""
    st.session_state[CHOSEN] = experiment
    # With parameters of its own: without any, Streamlit refuses to leave a page whose fields are in the address.
    st.switch_page(page, query_params={"experiment": experiment})


def set_address(**values: str | Sequence[str]) -> None:
    """Put values into the page's address, and take empty ones out, only where they differ.

    Each change is one more press of the browser's Back button, so a page's address carries no defaults.
    """
    new = {name: [value] if isinstance(value, str) and value else list(value) for name, value in values.items()}
    changed = {name: value for name, value in new.items() if st.query_params.get_all(name) != value}
    if filled := {name: value for name, value in changed.items() if value}:
        st.query_params.update(filled)
    for name in changed.keys() - filled.keys():
        del st.query_params[name]


def number_from_address(name: str, default: float, low: float, high: float) -> float:
    """A number from the page's address; the default if it is missing, and also, said so, if it is none in range."""
    text = st.query_params.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if low <= value <= high:
        return value
    if st.session_state.get(f"refused_{name}") != text:  # once
        st.session_state[f"refused_{name}"] = text
        st.warning(f"The address has {name} {plain(text[:20])}: use {low:g} to {high:g}. {default:g} is shown.")
    return default


def next_step(page: str, label: str, **query: str) -> None:
    """A link to the next page, whose address carries the experiment and `query`."""
    experiment = st.session_state.get(CHOSEN)
    params = {**({"experiment": experiment} if experiment else {}), **query}
    st.page_link(page, label=label, icon=":material/arrow_forward:", query_params=params)
