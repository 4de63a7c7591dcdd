"""Fields that the address carries, and number fields that say what is wrong with a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import streamlit as st

from pages.shared.navigation import set_address

N = TypeVar("N", int, float)
T = TypeVar("T")


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


class Form:
    """The fields of a form of which the address carries whatever differs from the defaults.

    The address is read when the form is first drawn in a session. Later the session counts: another experiment, or a
    duplicated run, changes the form, and its old address must not change it back.
    """

    def __init__(self, name: str) -> None:
        self._opened = f"opened_{name}"

    def drawn(self) -> None:
        """Note that the form has been drawn, at its end."""
        st.session_state[self._opened] = True

    def number(self, label: str, low: N, high: N, default: N, *, key: str, **settings: Any) -> N:
        """As `number`, kept in the session."""
        first = self._first(key, default, lambda text: type(default)(float(text)))
        first = first if low <= first <= high else default
        entered = number(label, low, high, first, key=key, persist_state="session", **settings)
        return self.kept(key, entered, default)

    def text(self, label: str, default: str, *, key: str, place: Any = st, **settings: Any) -> str:
        """As `st.text_input`, kept in the session."""
        first = self._first(key, default, lambda text: text[:400])
        return self.kept(key, place.text_input(label, first, key=key, persist_state="session", **settings), default)

    def toggle(self, label: str, default: bool, *, key: str, **settings: Any) -> bool:
        """As `st.toggle`, kept in the session."""
        first = self._first(key, default, lambda text: text == "True")
        return self.kept(key, st.toggle(label, first, key=key, persist_state="session", **settings), default)

    def choice(
        self, label: str, options: Sequence[str], default: str, *, key: str, place: Any = st, **settings: Any
    ) -> str:
        """As `st.selectbox`, kept in the session."""
        first = self._first(key, default, str)
        first = options.index(first if first in options else default)
        chosen = place.selectbox(label, options, index=first, key=key, persist_state="session", **settings)
        return self.kept(key, chosen, default)

    def _first(self, key: str, default: T, read: Callable[[str], T]) -> T:
        if self._opened in st.session_state or key not in st.query_params:
            return default
        try:
            return read(st.query_params[key])
        except (ValueError, OverflowError):
            return default

    def kept(self, key: str, value: T, default: T) -> T:
        """The value, kept in the address unless it is the default."""
        set_address(**{key: f"{value}" if value != default else ""})
        return value
