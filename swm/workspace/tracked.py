"""Folders with a state of their own: one job at a time, read-only where they ship."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from swm.errors import ExperimentError, JobError
from swm.workspace.files import demo_experiment, disk_errors, write_json
from swm.workspace.names import is_shipped, read_only_message
from swm.workspace.reading import read_file, state_in
from swm.workspace.state import State


class Tracked(ABC):
    """A folder with a state of its own: an experiment, a run or a sweep."""

    folder: Path
    name: str

    @property
    def read_only(self) -> bool:
        """Whether nothing here may be changed."""
        return is_shipped(self.folder) or bool(demo_experiment())

    def state(self) -> State:
        """Where its job stands, seen from here."""
        return state_in(self.folder / "state.json").seen_from_here()

    def write_state(self, state: State) -> None:
        """Write state.json."""
        self.check_there()
        write_json(self.folder / "state.json", asdict(state))

    def check_there(self) -> None:
        """Raise JobError if the folder was deleted or renamed: nothing may grow in its place."""
        if not self.is_there():
            raise JobError(f"{self.name} was deleted or renamed meanwhile: there is nowhere to write to.")

    @abstractmethod
    def is_there(self) -> bool:
        """Whether it still is, and was not deleted or renamed."""

    @abstractmethod
    def mend(self) -> None:
        """Put right what a killed job left; to be called by a job, which keeps others waiting."""

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the job's log."""
        file = self.folder / "job.log"
        if not file.exists():
            return ""
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - 200 * lines))
            text = stream.read().decode("utf-8", "replace")
        return "\n".join(re.split(r"[\r\n]+", text.rstrip())[-lines:])

    def read(self, name: str) -> dict[str, Any] | None:
        """One of our files, if it is there and what it should be."""
        file = self.folder / name
        if not file.exists():
            return None
        return read_file(file, name.split("/")[0])

    def write(self, name: str, data: dict[str, Any]) -> None:
        """Write one of our files, whole or not at all."""
        self.check_writable()
        write_json(self.folder / name, data)

    def check_writable(self) -> None:
        """Raise ExperimentError if it is read-only, JobError if it was deleted."""
        if self.read_only:
            raise ExperimentError(read_only_message(self.folder.name))
        self.check_there()


@contextmanager
def job_lock(target: Tracked) -> Iterator[None]:
    """Hold the place of the target's one job.

    Raises:
        JobError: if it has one already.
    """
    lock = FileLock(target.folder / ".job.lock")
    try:
        with disk_errors(target.folder, 4096):
            target.folder.mkdir(parents=True, exist_ok=True)
            # A process that was just killed takes a moment to let go; runs of a sweep plan one after the other.
            lock.acquire(timeout=-1 if os.environ.get("SWM_WAIT") else 1)
    except Timeout:
        raise JobError(f"{target.name} has a job running. Wait for it, or cancel it first.") from None
    try:
        target.check_there()  # it may have been deleted while we waited
        yield
    finally:
        lock.release()
