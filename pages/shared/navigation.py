"""Ways from page to page, and what their addresses carry."""

import streamlit as st


def go_to(page: str, experiment: str) -> None:
    """Open a page with another experiment; the frame selects it before it draws the sidebar."""
    st.session_state["next_experiment"] = experiment
    # With parameters of its own: without any, Streamlit refuses to leave a page whose fields are in the address.
    st.switch_page(page, query_params={"experiment": experiment})


def number_from_address(name: str, default: float, low: float, high: float) -> float:
    """A number from the page's address; the default if it is missing, not a number, or out of range."""
    try:
        value = float(st.query_params.get(name, default))
    except ValueError:
        return default
    return value if low <= value <= high else default


def next_step(page: str, label: str, **query: str) -> None:
    """A link to the next page, whose address carries the experiment and `query`."""
    experiment = st.session_state.get("experiment")
    params = {**({"experiment": experiment} if experiment else {}), **query}
    st.page_link(page, label=label, icon=":material/arrow_forward:", query_params=params)
