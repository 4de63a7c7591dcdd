"""Folders with their own state: one job at a time, read-only if bundled."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from swm.disk.files import demo_experiment, disk_errors, write_json
from swm.disk.names import is_shipped, read_only_message
from swm.errors import ExperimentError, JobError, MissingError
from swm.workspace.people import person
from swm.workspace.reading import read_file, state_in
from swm.workspace.shared_home import check_machine
from swm.workspace.state import State

CLUSTER_JOB = "SWM_CLUSTER_JOB"  # in the environment of a job on a cluster: its name
STOP_FILE = "stop-job"  # holds the name of the job on a cluster that is asked to stop


class Tracked(ABC):
    """A folder with its own state: an experiment, a run or a sweep."""

    folder: Path
    name: str

    @property
    def full_name(self) -> str:
        """Its name; of a run with that of its experiment, as in "demo / best-24"."""
        return self.name

    @property
    @abstractmethod
    def owner(self) -> str:
        """Who may change it, beside admins: an e-mail address; empty if everybody may."""

    @property
    def fixed(self) -> bool:
        """Whether nobody may change it: a bundled example, or anything in a demo."""
        return is_shipped(self.folder) or bool(demo_experiment())

    @property
    def read_only(self) -> bool:
        """Whether nothing here may be changed by who acts now."""
        return self.fixed or not person().may_change(self.owner)

    def why_read_only(self) -> str:
        """Why it cannot be changed, and what to do instead."""
        if self.fixed:
            return read_only_message(self.name)
        return f"{self.name} cannot be changed: it belongs to {self.owner}. Copy the experiment, or ask its owner."

    def state(self) -> State:
        """The state of its job, checked against the job's process."""
        return state_in(self.folder / "state.json").seen_from_here()

    def write_state(self, state: State) -> None:
        """Write state.json."""
        self.check_there()
        write_json(self.folder / "state.json", asdict(state))

    def asked_to_stop(self, cluster_job: str) -> bool:
        """Whether the job of that name on a cluster was asked to stop; False without a name."""
        try:
            return bool(cluster_job) and (self.folder / STOP_FILE).read_text(encoding="utf-8") == cluster_job
        except OSError:
            return False

    def check_there(self) -> None:
        """Raise JobError if the folder was deleted or renamed, so that nothing is created in its place."""
        if not self.is_there():
            raise JobError(f"{self.name} was deleted or renamed while the job was running, so results cannot be saved.")

    @abstractmethod
    def is_there(self) -> bool:
        """Whether it still exists under this name."""

    @abstractmethod
    def mend(self) -> None:
        """Repair what a killed job left; only for a job that holds the lock."""

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the job's log."""
        try:
            with (self.folder / "job.log").open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - 200 * lines))
                text = stream.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(re.split(r"[\r\n]+", text.rstrip())[-lines:])

    def read(self, name: str) -> dict[str, Any] | None:
        """The content of one of our files, validated; None if there is no such file."""
        file = self.folder / name
        try:
            return read_file(file, name.split("/")[0]) if file.exists() else None
        except MissingError:
            return None

    def write(self, name: str, data: dict[str, Any]) -> None:
        """Write one of our files atomically."""
        self.check_writable()
        write_json(self.folder / name, data)

    def check_writable(self) -> None:
        """Raise ExperimentError if it is read-only, JobError if it was deleted."""
        if self.read_only:
            raise ExperimentError(self.why_read_only())
        self.check_there()


@contextmanager
def job_lock(target: Tracked) -> Iterator[None]:
    """Hold the lock for the target's one job.

    Raises:
        JobError: if the target already has a job.
    """
    check_machine()
    lock = FileLock(target.folder / ".job.lock")
    try:
        with disk_errors(target.folder, 4096):
            target.folder.mkdir(parents=True, exist_ok=True)
            # A process that was just killed takes a moment to release the lock; the runs of a sweep plan one by one.
            lock.acquire(timeout=-1 if os.environ.get("SWM_WAIT") else 1)
    except Timeout:
        raise JobError(f"{target.name} has a job running. Wait for it, or cancel it first.") from None
    try:
        target.check_there()  # may have been deleted while we waited
        yield
    finally:
        with suppress(OSError):  # on a disk that was lost it ended with the connection
            lock.release()
