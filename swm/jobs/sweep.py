"""Sweeps: many runs from one file. Results on disk are never computed again."""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

from swm.disk.files import demo_experiment, home, matching, replace_file, write_json, written_at
from swm.disk.names import NAME, check_name, read_only_message
from swm.errors import ExperimentError, MissingError, SettingsError
from swm.jobs.sweep_file import SweepFile, read_sweep
from swm.reporting.compare import compare
from swm.reporting.row import Row
from swm.workspace.experiments import Experiment
from swm.workspace.people import person
from swm.workspace.tracked import Tracked

FILE, FAILED = "sweep.json", "failed.json"


ENDED = ("done", "failed")


class Sweep(Tracked):
    """A sweep's folder: its file and its state. Its cells are runs in separate experiments."""

    def __init__(self, name: str) -> None:
        self.name, self.folder = check_name(name), home() / "sweeps" / name

    @property
    def owner(self) -> str:
        """Who created it while logged in."""
        return str((self.read(FILE) or {}).get("owner", "")) if self.is_there() else ""

    def is_there(self) -> bool:
        """Whether the sweep still exists."""
        return (self.folder / FILE).is_file()

    def mend(self) -> None:
        """Nothing to repair: a sweep's files are written atomically."""

    @classmethod
    def create(cls, grid: dict[str, Any]) -> Sweep:
        """A new sweep, or the existing one of that name, which must have the same grid."""
        sweep = cls(read_sweep(grid).name)
        if demo_experiment():
            raise ExperimentError(read_only_message(sweep.name))
        if sweep.is_there() and sweep.grid != grid:
            raise SettingsError(f"Sweep {sweep.name} already exists with another grid. Change the name in this file.")
        if sweep.read_only:
            raise ExperimentError(sweep.why_read_only())
        owner = sweep.owner or person().name
        write_json(sweep.folder / FILE, {"grid": grid, **({"owner": owner} if owner else {})})
        replace_file(sweep.folder / "sweep.yaml", yaml.safe_dump(grid, sort_keys=False, allow_unicode=True).encode())
        return sweep

    @property
    def grid(self) -> dict[str, Any]:
        """The sweep's file as it was given; raises MissingError if the sweep was deleted."""
        data = self.read(FILE)
        if data is None:
            raise MissingError(f"There is no sweep {self.name}: it was deleted.")
        grid: dict[str, Any] = data.get("grid", {})
        return grid

    @property
    def file(self) -> SweepFile:
        """The sweep's file, validated, with its cells."""
        return read_sweep(self.grid)

    def failures(self) -> dict[str, str]:
        """Error messages of the runs that failed in the last pass, by "experiment/run"."""
        data = (self.read(FAILED) or {}).get("failed")
        return {str(name): str(reason) for name, reason in data.items()} if isinstance(data, dict) else {}

    def states(self) -> dict[str, str]:
        """The state of each run, by "experiment/run"; also "failed" for runs that failed before they wrote a state."""
        failed, states = self.failures(), {cell.name: cell.state() for cell in self.file.cells}
        return {name: "failed" if state == "waiting" and name in failed else state for name, state in states.items()}


def sweeps() -> tuple[list[Sweep], list[str]]:
    """The readable sweeps, newest first, and one message for each damaged one."""
    files = sorted(matching(home() / "sweeps", f"*/{FILE}"), key=written_at, reverse=True)
    readable, broken = [], []
    for file in files:
        if NAME.fullmatch(file.parent.name):
            try:
                sweep = Sweep(file.parent.name)
                _ = sweep.file
                readable.append(sweep)
            except MissingError:  # deleted since it was listed
                continue
            except (ExperimentError, SettingsError) as error:
                broken.append(f"Sweep {file.parent.name}: {error}")
    return readable, broken


class SweepRow(NamedTuple):
    """A run of a sweep, its state, and its row of `compare`, if there is one."""

    experiment: str
    run: str
    state: str
    row: Row | None


def sweep_rows(sweep: Sweep) -> list[SweepRow]:
    """One row for each run of a sweep."""
    cells, states = sweep.file.cells, sweep.states()
    results: dict[str, Row] = {}
    for name in dict.fromkeys(cell.experiment for cell in cells):
        try:
            results.update({f"{name}/{row.run}": row for row in compare(Experiment.open(name))})
        except ExperimentError:  # not created yet, or damaged, which its page reports
            continue
    return [SweepRow(cell.experiment, cell.run, states[cell.name], results.get(cell.name)) for cell in cells]
