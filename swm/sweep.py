"""Sweeps: many runs from one readable file, each the command that a user would type. The disk is the ledger.

What a cell has on disk is never done again, so a sweep, a machine or a cluster can end at any moment.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from swm.compare import compare
from swm.errors import ExperimentError, SettingsError
from swm.experiments import Experiment, Settings
from swm.files import demo_experiment, home, replace_file, write_json
from swm.metrics import TASKS
from swm.names import NAME, check_name
from swm.plan import DEFAULT_RULE, check_planner, check_rule
from swm.presets import preset_settings, recovery_arguments
from swm.tracked import Tracked, read_only_message

FILE, FAILED = "sweep.json", "failed.json"
MOST_CELLS = 10_000
ENDED = ("done", "failed")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its experiment, and what plans and heals it."""

    experiment: str
    run: str
    settings: Settings
    plan: tuple[str, ...]
    recovery: tuple[str, ...]
    limit: int | None

    @property
    def name(self) -> str:
        return f"{self.experiment}/{self.run}"

    @property
    def create_command(self) -> list[str]:
        s = self.settings
        numbers = ["--count", f"{s.count}", "--length", f"{s.length}", "--seed", f"{s.seed}", "--dtype", s.dtype]
        return ["create", self.experiment, "--model", s.model, "--texts", s.texts, *numbers]

    @property
    def run_command(self) -> list[str]:
        limit = "none" if self.limit is None else f"{self.limit}"
        return ["run", self.experiment, self.run, *self.plan, *self.recovery, "--limit", limit]

    def state(self) -> str:
        """Waiting, queued, running, done, failed, cancelled or interrupted: as the disk says."""
        try:
            run = Experiment.open(self.experiment).run(self.run)
            status = run.state().status
            if status in ("queued", "running"):
                return status
            scores = run.scores()
            whole = scores and scores["limit"] == self.limit and set(TASKS) <= set(scores["tasks"]) and run.timing()
            healed = run.stage == "recovered" or "--no-recovery" in self.recovery
            if whole and healed:
                return "done"
            return status if status in ("failed", "cancelled", "interrupted") else "waiting"
        except ExperimentError:
            return "waiting"


@dataclass(frozen=True)
class SweepFile:
    """What a sweep's file says, checked."""

    name: str
    cells: tuple[Cell, ...]
    cpus: float
    gpus: float
    retries: int


class Sweep(Tracked):
    """A sweep's folder: its file and its state. Its cells lie in experiments of their own."""

    def __init__(self, name: str) -> None:
        self.name, self.folder = check_name(name), home() / "sweeps" / name

    def is_there(self) -> bool:
        return (self.folder / FILE).is_file()

    def mend(self) -> None:
        """Nothing of it can be half done."""

    @classmethod
    def create(cls, grid: dict[str, Any]) -> Sweep:
        """Its folder, with the grid; one of that name must have the same grid."""
        sweep = cls(read_sweep(grid).name)
        if demo_experiment():
            raise ExperimentError(read_only_message(sweep.name))
        if sweep.is_there() and sweep.grid != grid:
            raise SettingsError(f"There is a sweep {sweep.name} with another grid. Give this file another name.")
        write_json(sweep.folder / FILE, {"grid": grid})
        replace_file(sweep.folder / "sweep.yaml", yaml.safe_dump(grid, sort_keys=False, allow_unicode=True).encode())
        return sweep

    @property
    def grid(self) -> dict[str, Any]:
        found: dict[str, Any] = (self._json(FILE) or {}).get("grid", {})
        return found

    @property
    def file(self) -> SweepFile:
        return read_sweep(self.grid)

    def failures(self) -> dict[str, str]:
        """What the runs said that ended badly in the last pass, by "experiment/run"."""
        data = (self._json(FAILED) or {}).get("failed")
        return {str(name): str(reason) for name, reason in data.items()} if isinstance(data, dict) else {}

    def states(self) -> dict[str, str]:
        """Where each run stands, by "experiment/run"; one that failed before it left a trace is failed too."""
        failed, found = self.failures(), {cell.name: cell.state() for cell in self.file.cells}
        return {name: "failed" if state == "waiting" and name in failed else state for name, state in found.items()}


def sweeps() -> tuple[list[Sweep], list[str]]:
    """The sweeps that can be read, the newest first, and one message for each that cannot."""
    files = sorted((home() / "sweeps").glob(f"*/{FILE}"), key=lambda file: -file.stat().st_mtime)
    found, broken = [], []
    for file in files:
        if NAME.fullmatch(file.parent.name):
            try:
                sweep = Sweep(file.parent.name)
                _ = sweep.file
                found.append(sweep)
            except (ExperimentError, SettingsError) as error:
                broken.append(f"Sweep {file.parent.name}: {error}")
    return found, broken


def sweep_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """One row for each run of a sweep: `name`, `state`, `experiment`, `run`, and what `compare` says of it, if any."""
    cells, states, rows = sweep.file.cells, sweep.states(), []
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(cell.experiment for cell in cells):
        try:
            found.update({f"{name}/{row['run']}": row for row in compare(Experiment.open(name))})
        except ExperimentError:  # not created yet, or damaged: its page tells
            continue
    for cell in cells:
        known = {"name": cell.name, "experiment": cell.experiment, "run": cell.run, "state": states[cell.name]}
        rows.append({**found.get(cell.name, {}), **known})
    return rows


# ---- the file -------------------------------------------------------------------------------------------------------


def load_grid(file: Path) -> dict[str, Any]:
    """A sweep's file; its name is the file's where it says none.

    Raises:
        SettingsError: if it cannot be read or is no sweep.
    """
    try:
        grid = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"{file} cannot be read: {' '.join(str(error).split())[:300]}. Correct it.") from None
    if not isinstance(grid, dict):
        raise SettingsError(f"{file} is no sweep. Compare it with the files in assets/sweeps.")
    grid.setdefault("name", _slug(file.stem))
    for entry in ("models", "texts"):  # the runs work elsewhere
        if entry in grid:
            grid[entry] = [_absolute(str(one)) for one in _list(grid[entry])]
    read_sweep(grid)
    return grid


def read_sweep(grid: dict[str, Any]) -> SweepFile:
    """The cells of a grid: every model with every text and seed, planned and healed in every way.

    Raises:
        SettingsError: naming the entry that cannot be.
    """
    known = {
        "name", "models", "texts", "count", "length", "dtype", "seeds", "plans", "recovery", "limit", "cpus", "gpus",
        "retries",
    }  # fmt: skip
    if unknown := sorted(set(map(str, grid)) - known):
        raise SettingsError(
            f"The sweep has an entry {unknown[0]}, which means nothing. Known: {', '.join(sorted(known))}."
        )
    try:
        cells = tuple(_cells(grid))
        numbers = float(grid.get("cpus", 1)), float(grid.get("gpus", 0)), int(grid.get("retries", 2))
        if not (0 < numbers[0] <= 1024 and 0 <= numbers[1] <= 1024 and 0 <= numbers[2] <= 100):
            raise ValueError(f"cpus, gpus or retries are out of range: {numbers}")
        name = check_name(str(grid["name"]))
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, ExperimentError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise SettingsError(
            f"The sweep cannot be read ({reason}). Compare it with the files in assets/sweeps."
        ) from None
    return SweepFile(name, cells, *numbers)


def _cells(grid: dict[str, Any]) -> Iterator[Cell]:
    limit = grid.get("limit", 100)
    limit = None if limit == "none" else int(limit)
    plans = [plan for entry in _list(grid["plans"]) for plan in _plans(entry)]
    recoveries = [_recovery(entry) for entry in _list(grid.get("recovery", "quick"))]
    models, texts = _list(grid["models"]), _list(grid.get("texts", "lambada"))
    seeds = _list(grid.get("seeds", 1234))
    shape = {"count": int(grid.get("count", 10)), "length": int(grid.get("length", 128))}
    every = list(itertools.product(models, texts, seeds, plans, recoveries))
    if not 1 <= len(every) <= MOST_CELLS:
        raise SettingsError(f"The sweep has {len(every):,} runs. Choose 1 to {MOST_CELLS:,}.")
    seen: dict[str, Cell] = {}
    for model, text, seed, (plan_name, plan), (recovery_name, recovery) in every:
        settings = Settings(str(model), str(text), **shape, seed=int(seed), dtype=str(grid.get("dtype", "auto")))
        parts = [str(grid["name"]), Path(str(model)).name, Path(str(text)).name, str(seed)]
        cell = Cell(
            _name(parts, repr(settings)), _name([plan_name, recovery_name], ""), settings, plan, recovery, limit
        )
        if cell.name not in seen:
            seen[cell.name] = cell
            yield cell
        elif seen[cell.name] != cell:
            raise SettingsError(f"Two different runs of the sweep would be called {cell.name}. Change one of them.")


def _plans(entry: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and options of each plan that an entry names: a planner or a rule, at ratios, layers or thresholds."""
    entry = dict(entry)
    planner, rule = entry.pop("planner", None), entry.pop("rule", None)
    how: list[str] = []
    if planner is not None:
        check_planner(planner)
        how = ["--planner", planner]
    if rule is not None or planner is None:
        check_rule(rule or DEFAULT_RULE)
        how += ["--rule", rule or DEFAULT_RULE]
    amounts = {key: entry.pop(key) for key in ("ratio", "layers", "threshold") if key in entry}
    if len(amounts) != 1 or entry:
        raise SettingsError(
            f"A plan of the sweep needs planner or rule, and one of ratio, layers and threshold; it says "
            f"{sorted([*amounts, *map(str, entry)])}. Correct it."
        )
    ((kind, values),) = amounts.items()
    for value in _list(values):
        number: float = int(value) if kind == "layers" else float(value)
        if not 0 <= number < math.inf:
            raise ValueError(f"{kind} {number}")
        amount = {"ratio": f"{100 * number:.6g}pc", "layers": f"{number}", "threshold": f"t{number!r}"}[kind]
        yield "-".join(filter(None, [planner, rule, amount])), (*how, f"--{kind}", f"{number!r}")


def _recovery(entry: Any) -> tuple[str, tuple[str, ...]]:
    """Name and options of a recovery: none, a preset's name, or a preset with settings changed."""
    if entry == "none":
        return "merged", ("--no-recovery",)
    changes = {"preset": entry} if isinstance(entry, str) else dict(entry)
    settings = preset_settings(changes.pop("preset", "quick"), **changes)
    name = "-".join([settings.preset, *(f"{key}-{value}" for key, value in changes.items())])
    return name, tuple(recovery_arguments(vars(settings)))


def _absolute(name: str) -> str:
    """A relative path that is there, as seen from here, whole; other names as they are."""
    try:
        return str(Path(name).absolute()) if Path(name).exists() else name
    except (OSError, ValueError):
        return name


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def _name(parts: Sequence[str], whole: str) -> str:
    """A name from its parts; with a hash where it would be too long, or two could get the same one."""
    name = "-".join(_slug(part) for part in parts)
    digest = hashlib.sha256(f"{parts}{whole}".encode()).hexdigest()[:6]
    return f"{name[:57]}-{digest}" if whole or len(name) > 64 else name


# ---- running --------------------------------------------------------------------------------------------------------
