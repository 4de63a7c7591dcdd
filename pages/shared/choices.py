"""Choices that show titles and keep names: in the address, in the session, on every page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import streamlit as st

from pages.shared.navigation import set_address
from pages.shared.plain import plain
from swm.registry import Entry
from swm.reporting.glossary import title_of

STUDY = "studies_kind"


def named_choice(
    widget: Callable[..., Any], label: str, titles: Mapping[str, str], key: str, default: str = "", **settings: Any
) -> str:
    """A selectbox or segmented control that shows titles; the address and the session keep the name behind the title.

    Args:
        titles: of the options by name.
        default: a name; without it the first.
    """
    if not {key, f"kept_{key}"} & {*st.session_state}:
        check_address(key, list(titles), f"choice under “{label}”")
    if st.session_state.get(key) not in titles:
        kept = (st.query_params.get(key), st.session_state.get(f"kept_{key}"), default, next(iter(titles)))
        st.session_state[key] = next(name for name in kept if name in titles)
    name: str = widget(label, list(titles), format_func=lambda name: titles[name], key=key, **settings)
    st.session_state[f"kept_{key}"] = name
    set_address(**{key: "" if name == (default or next(iter(titles))) else name})
    return name


def check_address(name: str, options: Sequence[str], what: str) -> None:
    """Say which of the values that the page's address has under a name are none of the options."""
    unknown = [value for value in st.query_params.get_all(name) if value not in options]
    if unknown and st.session_state.get(f"unknown_{name}") != unknown:
        st.session_state[f"unknown_{name}"] = unknown
        some = ", ".join(plain(value[:64]) for value in unknown)
        st.warning(f"The address names {some}, but there is no such {what} here.")


def stop_if_gone(key: str, options: Sequence[str], what: str) -> None:
    """End the page where the choice of a widget has been deleted or renamed: what was clicked was about that.

    Call it before the widget is drawn, which then shows its default.
    """
    chosen = st.session_state.get(key)
    if chosen is None or chosen in options:
        return
    del st.session_state[key]
    st.session_state[f"unknown_{key}"] = [chosen]  # which the address still has
    end_as_gone(f"{what} {chosen}")


def end_as_gone(name: str, now: str = "", label: str = "Continue") -> None:
    """Say that what the page showed is gone, and end the page with a button that goes on.

    Args:
        now: a sentence on what is shown instead.
    """
    gone = f"{plain(name[:80])} was deleted or renamed elsewhere, so nothing was done. {now}"
    st.warning(gone.strip(), icon=":material/warning:")
    st.button(label, type="primary", key="continue_after_gone")
    st.stop()


def forget_choice(key: str) -> None:
    """Let a choice fall back on its default."""
    for name in (key, f"kept_{key}"):
        st.session_state.pop(name, None)
    st.query_params.pop(key, None)


def titles_of(registry: Mapping[str, Entry]) -> dict[str, str]:
    """Title of each choice, with the name to type in brackets."""
    return {name: title_of(entry) for name, entry in registry.items()}
