"""Choices that show titles and keep names: in the address, in the session, on every page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

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
    if st.session_state.get(key) not in titles:
        kept = (st.query_params.get(key), st.session_state.get(f"kept_{key}"), default, next(iter(titles)))
        st.session_state[key] = next(name for name in kept if name in titles)
    name: str = widget(label, list(titles), format_func=lambda name: titles[name], key=key, **settings)
    st.session_state[f"kept_{key}"] = st.query_params[key] = name
    return name


def forget_choice(key: str) -> None:
    """Let a choice fall back on its default."""
    for name in (key, f"kept_{key}"):
        st.session_state.pop(name, None)
    st.query_params.pop(key, None)


def titles_of(registry: Mapping[str, Entry]) -> dict[str, str]:
    """Title of each choice, with the name to type in brackets."""
    return {name: title_of(entry) for name, entry in registry.items()}
