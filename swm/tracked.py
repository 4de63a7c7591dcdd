"""Folders with a state of their own: our files in them, one job at a time, read-only where they ship."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from swm.errors import ExperimentError, JobError
from swm.files import demo_experiment, disk_errors, home, read_json, write_json
from swm.schemas import SHAPES, check_like
from swm.states import State

SHIPPED = Path(__file__).parents[1] / "assets" / "experiments"
SMALL_BYTES = 2**16  # larger files are read anew each time
T = TypeVar("T")


class Tracked(ABC):
    """A folder with a state of its own: an experiment, a run or a sweep."""

    folder: Path
    name: str

    @property
    def read_only(self) -> bool:
        return SHIPPED in self.folder.parents or bool(demo_experiment())

    def state(self) -> State:
        return _state_in(self.folder / "state.json").seen_from_here()

    def write_state(self, state: State) -> None:
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

    def _json(self, name: str) -> dict[str, Any] | None:
        """One of our files, if it is there and what it should be."""
        file = self.folder / name
        if not file.exists():
            return None
        return read_file(file, name.split("/")[0])

    def check_writable(self) -> None:
        if self.read_only:
            raise ExperimentError(read_only_message(self.folder.name))
        self.check_there()


def shipped_folders() -> list[Path]:
    """Folders of the experiments that ship with the program, by name."""
    return sorted(file.parent for file in SHIPPED.glob("*/experiment.json"))


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


@contextmanager
def names_locked() -> Iterator[None]:
    """One at a time: what makes or removes experiments and runs. It takes milliseconds."""
    lock = FileLock(home() / ".names.lock")
    try:
        with disk_errors(home(), 4096):
            home().mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=10)
    except Timeout:
        raise JobError("Another program is making or deleting experiments. Try again in a moment.") from None
    try:
        yield
    finally:
        lock.release()


def read_only_message(name: str) -> str:
    if demo_experiment():
        return f"{name} cannot be changed: this is a demo, started with SWM_DEMO, and everything in it is read-only."
    return (
        f"{name} belongs to the results that ship with the program: it is read-only and cannot be changed. "
        "Create an experiment of your own: "
        f"python -m swm create NAME --model smollm2-135m"
    )


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
    data = read_json(file)
    if kind in SHAPES:
        check_like(data, kind, str(file))
    return data


def read_file(file: Path, kind: str) -> dict[str, Any]:
    """One of our files, checked to be what a file of that kind is."""
    return dict(checked_file(file, kind))


@once_for_each_writing
def _state_in(file: Path) -> State:
    if not file.exists():
        return State()
    try:
        data = checked_file(file, "state.json")
        known = {field.name: data[field.name] for field in fields(State) if field.name in data}
        return State(**{**known, "command": tuple(known.get("command", ()))})
    except (ExperimentError, TypeError, ValueError) as error:
        # The state only tells; what a job made lies in other files.
        return State("job", "failed", error=f"What it did cannot be read: {error}")
