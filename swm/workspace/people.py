"""Who acts, and whether what they act on is theirs: for an app with a login that several people use."""

from __future__ import annotations

import getpass
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from swm.disk.files import home

NAME, ADMIN = "SWM_PERSON", "SWM_ADMIN"  # how a job knows who started it
READ_BYTES = 2**18  # of the end of the file
FIELDS = ("time", "who", "what", "target", "outcome")
log = logging.getLogger(__name__)


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


def audit_file() -> Path:
    """The file, which only its owner can read."""
    return home() / "audit.jsonl"


def record(what: str, target: str, outcome: str, command: Sequence[str] = (), who: str = "") -> None:
    """Append a line, where people log in; a line that cannot be written must not stop what it is about.

    Nothing is written in a home that nobody has used with a login.

    Args:
        target: an experiment, a run as "experiment / run", or a sweep.
        who: by default the person who acts, or else the user of this machine.
    """
    if not (who or person().name or audit_file().exists()):
        return
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    who = who or person().name or _user()
    entry = {"time": now, "who": who, "what": what, "target": target, "outcome": outcome, "command": list(command)}
    line = (json.dumps(entry) + "\n").encode()
    try:
        handle = os.open(audit_file(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line)  # in one piece, so that lines of several processes do not mix
        finally:
            os.close(handle)
    except OSError as error:
        log.warning("audit.jsonl could not be written: %s", error)


def entries(name: str, most: int = 50) -> list[dict[str, Any]]:
    """The latest lines on an experiment and its runs, newest first; damaged ones are left out."""
    try:
        with audit_file().open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - READ_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    found = []
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and str(entry.get("target", "")).split(" / ")[0] == name:
            found.append({field: str(entry.get(field, "")) for field in FIELDS})
        if len(found) == most:
            break
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user id, as in some containers
        return str(os.getuid())
