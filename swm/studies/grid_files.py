"""Files of grids: read, checked, and written as YAML to show or copy. No torch."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import yaml

from swm.disk.files import APP_FOLDER
from swm.errors import SettingsError
from swm.studies.grids import KINDS, parsed_grid
from swm.workspace.experiments import Experiment

GRIDS = APP_FOLDER / "assets" / "studies.yaml"


def grid_of(experiment: Experiment, kind: str, file: Path | None = None) -> dict[str, Any]:
    """A study's grid: from the file if given, otherwise from the study's last pass, otherwise the default grid.

    Raises:
        SettingsError: if there is no such study, or its grid cannot be read.
    """
    last = (experiment.study(kind) or {}).get("grid") if kind in KINDS and not file else None
    return checked_grid(kind, last, f"the study of {experiment.name}") if last else read_grid(kind, file)


def read_grid(kind: str, file: Path | None = None) -> dict[str, Any]:
    """A study's grid from a file, validated.

    Raises:
        SettingsError: if there is no such study, or the file has no valid grid for it.
    """
    if kind not in KINDS:
        raise SettingsError(f"'{kind}' is not a study. Choose one of: {', '.join(KINDS)}.")
    file = file or GRIDS
    try:
        grid: dict[str, Any] = dict(yaml.safe_load(file.read_text(encoding="utf-8"))[kind])
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise _unreadable(kind, f"{file}", f"{type(error).__name__}: {error}") from None
    return checked_grid(kind, grid, f"{file}")


def checked_grid(kind: str, grid: dict[str, Any], where: str) -> dict[str, Any]:
    """The grid itself; raises SettingsError, saying `where` the grid is, if it is not valid for that kind."""
    try:
        parsed_grid(kind, grid)
    except (SettingsError, TypeError, ArithmeticError) as error:  # names that are not text, numbers too large
        raise _unreadable(kind, where, str(error)) from None
    return grid


def _unreadable(kind: str, where: str, reason: str) -> SettingsError:
    reason = " ".join(reason.split()).rstrip(".")[:300]
    return SettingsError(
        f"Cannot read grid '{kind}' in {where}: {reason}. Compare it with {GRIDS}, or pass that file with --grid."
    )


def grid_text(kind: str) -> str:
    """The part of assets/studies.yaml that declares a study."""
    lines = GRIDS.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"{kind}:"))
    rest = itertools.takewhile(lambda line: not line or line[0] == " ", lines[first + 1 :])
    return "\n".join([lines[first], *rest]).rstrip()


def grid_yaml(kind: str, grid: dict[str, Any]) -> str:
    """A grid as YAML, to show and to copy into a file."""
    return yaml.safe_dump({kind: grid}, sort_keys=False, default_flow_style=None, width=110).rstrip()
