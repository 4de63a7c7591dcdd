"""One line for each thing that was done: who, what, when, and how it ended. In audit.jsonl of the home folder."""

from __future__ import annotations

import getpass
import json
import logging
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from swm.disk.files import home
from swm.workspace.people import person

READ_BYTES = 2**18  # of the end of the file
FIELDS = ("time", "who", "what", "target", "outcome")
log = logging.getLogger(__name__)


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
