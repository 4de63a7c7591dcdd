"""Sweeps: many runs from one readable file, each the command that a user would type. The disk is the ledger.

What a cell has on disk is never done again, so a sweep, a machine or a cluster can end at any moment.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from swm.errors import ExperimentError, SettingsError
from swm.evaluation.task_names import TASKS
from swm.plan import DEFAULT_RULE
from swm.registry import MERGE_RULES, PLANNERS
from swm.reporting.arguments import recovery_arguments
from swm.settings import ExperimentSettings, preset_settings
from swm.workspace.experiments import Experiment
from swm.workspace.names import check_name

MOST_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its experiment, and what plans and heals it."""

    experiment: str
    run: str
    settings: ExperimentSettings
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
        settings = ExperimentSettings(
            str(model), str(text), **shape, seed=int(seed), dtype=str(grid.get("dtype", "auto"))
        )
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
        PLANNERS.check(planner)
        how = ["--planner", planner]
    if rule is not None or planner is None:
        MERGE_RULES.check(rule or DEFAULT_RULE)
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
