"""Names of experiments and runs, the folder of experiments, and the bundled examples."""

from __future__ import annotations

import os
import re
from pathlib import Path

from swm.disk.files import APP_FOLDER, demo_experiment, home, matching, written_at
from swm.errors import ExperimentError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


EXAMPLE = "example-"  # prefix of the bundled experiments' names


def experiments_folder() -> Path:
    """The folder of the user's experiments."""
    return home() / "experiments"


def check_name(name: str) -> str:
    """The name itself, if it is valid.

    Raises:
        ExperimentError: for anything but 1 to 64 lower-case letters, digits and hyphens, no hyphen first.
    """
    if not NAME.fullmatch(name):
        raise ExperimentError(
            f"'{name[:80]}' is not a valid name. Use 1 to 64 lower-case letters, digits and hyphens; "
            "start with a letter or digit."
        )
    return name


def check_new(name: str) -> Path:
    """The folder for a new experiment; raises ExperimentError if the name is taken."""
    folder = experiments_folder() / check_name(name)
    if name in (shipped.name for shipped in shipped_folders()):
        raise ExperimentError(f"{name} is the name of a bundled example. Choose another name.")
    if (folder / "experiment.json").exists():  # a folder without it was left by a killed process
        raise ExperimentError(f"Experiment {name} already exists. Choose another name, or delete {folder}.")
    return folder


def list_names() -> list[str]:
    """Names of the user's experiments, newest first, then of the bundled examples."""
    own = [
        file.parent for file in matching(experiments_folder(), "*/experiment.json") if NAME.fullmatch(file.parent.name)
    ]
    own.sort(key=lambda folder: written_at(folder / "experiment.json"), reverse=True)
    return list(dict.fromkeys(folder.name for folder in (*own, *shipped_folders())))


def folders_in(folder: Path) -> list[str]:
    """Sorted names in a folder that are valid experiment or run names."""
    try:
        return sorted(filter(NAME.fullmatch, os.listdir(folder)))
    except (FileNotFoundError, NotADirectoryError):
        return []


SHIPPED = APP_FOLDER / "assets" / "experiments"


def is_shipped(folder: Path) -> bool:
    """Whether a folder belongs to a bundled example."""
    return SHIPPED in folder.parents


def shipped_folders() -> list[Path]:
    """Folders of the bundled examples, sorted by name."""
    return sorted(file.parent for file in matching(SHIPPED, "*/experiment.json"))


def read_only_message(name: str) -> str:
    """Why an experiment cannot be changed, and what to do instead."""
    if demo_experiment():
        return f"{name} cannot be changed: this is a demo (SWM_DEMO is set), and everything in it is read-only."
    return (
        f"{name} cannot be changed: bundled examples are read-only. Create an experiment of your own: "
        f"python -m swm create NAME --model smollm2-135m"
    )
