"""Names of experiments and runs, where experiments are, and those that ship with the program."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from swm.errors import ExperimentError, JobError
from swm.workspace.files import APP_FOLDER, demo_experiment, disk_errors, home

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


EXAMPLE = "example-"  # what the names of experiments that ship begin with


def experiments_folder() -> Path:
    """Where the user's experiments are."""
    return home() / "experiments"


def check_name(name: str) -> str:
    """The name itself, if it can be one.

    Raises:
        ExperimentError: for anything but lower-case letters, digits and hyphens, at most 64, no hyphen first.
    """
    if not NAME.fullmatch(name):
        raise ExperimentError(
            f"'{name[:80]}' cannot be a name. Use 1 to 64 lower-case letters, digits and hyphens; "
            "start with a letter or digit."
        )
    return name


def check_new(name: str) -> Path:
    """Folder for a new experiment of that name; raises ExperimentError if there is one already."""
    folder = experiments_folder() / check_name(name)
    if name in (each.name for each in shipped_folders()):
        raise ExperimentError(f"{name} is an example that ships with the program. Choose another name.")
    if (folder / "experiment.json").exists():  # a folder without it is what a killed process left
        raise ExperimentError(f"There is an experiment {name} already. Choose another name, or delete {folder}.")
    return folder


def list_names() -> list[str]:
    """Names of the user's experiments, newest first, then those that ship with the program."""
    own = [file.parent for file in experiments_folder().glob("*/experiment.json") if NAME.fullmatch(file.parent.name)]
    own.sort(key=lambda folder: (folder / "experiment.json").stat().st_mtime, reverse=True)
    return list(dict.fromkeys(folder.name for folder in (*own, *shipped_folders())))


def folders_in(folder: Path) -> list[str]:
    """Names in a folder that can be ours, in order."""
    return sorted(filter(NAME.fullmatch, os.listdir(folder))) if folder.is_dir() else []


SHIPPED = APP_FOLDER / "assets" / "experiments"


def is_shipped(folder: Path) -> bool:
    """Whether a folder belongs to the experiments that ship with the program."""
    return SHIPPED in folder.parents


def shipped_folders() -> list[Path]:
    """Folders of the experiments that ship with the program, by name."""
    return sorted(file.parent for file in SHIPPED.glob("*/experiment.json"))


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
    """Why an experiment cannot be changed, and what to do instead."""
    if demo_experiment():
        return f"{name} cannot be changed: this is a demo, started with SWM_DEMO, and everything in it is read-only."
    return (
        f"{name} belongs to the results that ship with the program: it is read-only and cannot be changed. "
        "Create an experiment of your own: "
        f"python -m swm create NAME --model smollm2-135m"
    )
