"""Who acts, and whether what they act on is theirs: for an app with a login that several people use."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from swm.disk.files import home

NAME, ADMIN = "SWM_PERSON", "SWM_ADMIN"  # how a job knows who started it


@dataclass(frozen=True)
class Person:
    """Somebody who is logged in.

    Attributes:
        name: e-mail address; empty for whoever uses the command line, or an app without a login: nothing is kept from
            them.
        admin: may change what belongs to others.
    """

    name: str = ""
    admin: bool = False

    def may_change(self, owner: str) -> bool:
        """Whether they may change something of this owner; what has no owner belongs to everybody."""
        return not self.name or not owner or self.admin or self.name.casefold() == owner.casefold()


def _of_environment() -> Person:
    return Person(os.environ.get(NAME, ""), bool(os.environ.get(ADMIN)))


_ask: Callable[[], Person] = _of_environment


def identify_by(ask: Callable[[], Person]) -> None:
    """Let a function say who acts, each time that it matters: the app asks the session of the page that is drawn."""
    global _ask
    _ask = ask


def person() -> Person:
    """Who acts now."""
    return _ask()


def child_environment(**more: str) -> dict[str, str]:
    """The environment for a child process that runs in another folder: the same person, and the same home as an
    absolute path."""
    who = person()
    mine = {"SWM_HOME": str(home()), NAME: who.name, ADMIN: "1" if who.admin else ""}
    return {**os.environ, **mine, **more}
