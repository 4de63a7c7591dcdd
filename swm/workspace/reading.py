"""Reads our JSON files, each once for each time it was written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from swm.errors import ExperimentError
from swm.workspace.files import read_json
from swm.workspace.records import FILES, check_record
from swm.workspace.state import State

SMALL_BYTES = 2**16  # larger files are read anew each time


T = TypeVar("T")


def once_for_each_writing(parse: Callable[..., T]) -> Callable[..., T]:
    """What `parse` makes of a file and other arguments; of a small file once for each time it was written."""
    known = lru_cache(maxsize=8192)(lambda stamp, path, *others: parse(Path(path), *others))

    def read(file: Path, *others: str) -> T:
        try:
            stat = os.stat(file)
        except OSError:  # gone since it was looked for: said as of any file that is not there
            return parse(file, *others)
        if stat.st_size > SMALL_BYTES:
            return parse(file, *others)
        return known((stat.st_ino, stat.st_mtime_ns, stat.st_size), str(file), *others)

    return read


@once_for_each_writing
def checked_file(file: Path, kind: str) -> dict[str, Any]:
    """The JSON object in one of our files, checked."""
    data = read_json(file)
    if kind in FILES:
        check_record(data, kind, str(file))
    return data


def read_file(file: Path, kind: str) -> dict[str, Any]:
    """One of our files, checked to be what a file of that kind is."""
    return dict(checked_file(file, kind))


@once_for_each_writing
def state_in(file: Path) -> State:
    """The state in state.json; a failed one if the file is damaged."""
    if not file.exists():
        return State()
    try:
        known = check_record(read_json(file), "state.json", str(file))
        return State(**{field.name: getattr(known, field.name) for field in fields(State)})
    except ExperimentError as error:
        # The state only tells; what a job made lies in other files.
        return State("job", "failed", error=f"What it did cannot be read: {error}")
