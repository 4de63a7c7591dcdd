"""Reads our JSON files; small ones are cached until they change."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from swm.disk.files import read_json
from swm.errors import ExperimentError, MissingError, UnknownNameError
from swm.workspace.records import FILES, check_record
from swm.workspace.state import State

SMALL_BYTES = 2**16  # larger files are not cached


T = TypeVar("T")


def once_for_each_writing(parse: Callable[..., T]) -> Callable[..., T]:
    """`parse` with a cache: a small file is parsed again only after it was written again."""
    cached = lru_cache(maxsize=8192)(lambda stamp, path, *arguments: parse(Path(path), *arguments))

    def read(file: Path, *arguments: str) -> T:
        try:
            stat = os.stat(file)
        except OSError:  # deleted meanwhile: `parse` reports it like any missing file
            return parse(file, *arguments)
        if stat.st_size > SMALL_BYTES:
            return parse(file, *arguments)
        return cached((stat.st_ino, stat.st_mtime_ns, stat.st_size), str(file), *arguments)

    return read


@once_for_each_writing
def checked_file(file: Path, kind: str) -> dict[str, Any]:
    """The JSON object in one of our files, validated."""
    data = read_json(file)
    if kind in FILES:
        check_record(data, kind, str(file))
    return data


def uninstalled_message(file: Path, error: UnknownNameError) -> str:
    """The message for a sound file that names something that only a missing plugin or a newer release knows."""
    return (
        f"{file} cannot be used here: {error} Install the plugin that adds it, or update this program. The file itself "
        "is intact."
    )


def read_file(file: Path, kind: str) -> dict[str, Any]:
    """A copy of the JSON object in one of our files, validated as a file of that kind."""
    return dict(checked_file(file, kind))


@once_for_each_writing
def state_in(file: Path) -> State:
    """The state in state.json; a failed one if the file is damaged."""
    if not file.exists():
        return State()
    try:
        record = check_record(read_json(file), "state.json", str(file))
        return State(**{field.name: getattr(record, field.name) for field in fields(State)})
    except MissingError:
        return State()
    except ExperimentError as error:
        # The state only reports; a job's results are in other files.
        return State("job", "failed", error=f"The state of its last job is damaged: {error}")
