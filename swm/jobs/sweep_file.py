"""A sweep's file: every model with every text, plan and recovery, each as the command that a user would type."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from swm.checked import explained
from swm.disk.files import whole_path
from swm.disk.names import check_name
from swm.errors import ExperimentError, SettingsError
from swm.evaluation.task_names import TASKS, Limit
from swm.plan import DEFAULT_RULE
from swm.registry import MERGE_RULES, PLANNERS
from swm.reporting.commands import recovery_arguments
from swm.settings import ExperimentSettings, preset_settings
from swm.workspace.experiments import Experiment
from swm.workspace.targets import count_from, loss_from, size_from

T = TypeVar("T")
MOST_CELLS = 10_000


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its experiment, its plan and its recovery."""

    experiment: str
    run: str
    settings: ExperimentSettings
    plan: tuple[str, ...]
    recovery: tuple[str, ...]
    limit: int | None

    @property
    def name(self) -> str:
        """ "experiment/run"."""
        return f"{self.experiment}/{self.run}"

    @property
    def create_command(self) -> list[str]:
        """The command that creates the cell's experiment."""
        s = self.settings
        numbers = ["--count", f"{s.count}", "--length", f"{s.length}", "--seed", f"{s.seed}", "--dtype", s.dtype]
        return ["create", self.experiment, "--model", s.model, "--texts", s.texts, *numbers]

    @property
    def run_command(self) -> list[str]:
        """The command that makes the cell's run."""
        limit = "none" if self.limit is None else f"{self.limit}"
        return ["run", self.experiment, self.run, *self.plan, *self.recovery, "--limit", limit]

    def state(self) -> str:
        """Waiting, queued, running, done, failed, cancelled or interrupted, according to the files on disk."""
        try:
            run = Experiment.open(self.experiment).run(self.run)
            status = run.state().status
            if status in ("queued", "running"):
                return status
            measured = run.is_scored(TASKS, self.limit) and run.timing()
            healed = run.stage == "recovered" or "--no-recovery" in self.recovery
            if measured and healed:
                return "done"
            return status if status in ("failed", "cancelled", "interrupted") else "waiting"
        except ExperimentError:
            return "waiting"


def _as_list(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


OneOrMany = Annotated[tuple[T, ...], BeforeValidator(_as_list)]
AMOUNTS = ("ratio", "layers", "threshold", "speedup", "memory", "parameters", "loss")
TEXT_AMOUNTS = {"memory": size_from, "parameters": count_from, "loss": loss_from}
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PlanEntry(BaseModel):
    """Plans of a sweep: a planner or a rule, at ratios, numbers of layers, thresholds or targets.

    The targets are those of `swm plan`: a memory such as 6GiB for weights and cache, a number of parameters such as
    5.5B, a loss of perplexity such as 5%, a speed relative to the original.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    planner: str | None = None
    rule: str | None = None
    ratio: OneOrMany[Amount] = ()
    layers: OneOrMany[Annotated[int, Field(ge=0)]] = ()
    threshold: OneOrMany[Amount] = ()
    speedup: OneOrMany[Annotated[float, Field(gt=1, allow_inf_nan=False)]] = ()
    memory: OneOrMany[str] = ()
    parameters: OneOrMany[str] = ()
    loss: OneOrMany[str] = ()

    @model_validator(mode="after")
    def _one_amount(self) -> PlanEntry:
        if sum(bool(getattr(self, kind)) for kind in AMOUNTS) != 1:
            *others, last = AMOUNTS
            raise ValueError(f"a plan needs planner or rule, and one of {', '.join(others)} and {last}")
        for kind, read in TEXT_AMOUNTS.items():
            for text in getattr(self, kind):
                read(text)
        return self


class SweepGrid(BaseModel):
    """The schema of a sweep's file; see assets/sweeps."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    name: str
    models: OneOrMany[str]
    plans: OneOrMany[PlanEntry]
    texts: OneOrMany[str] = ("lambada",)
    count: int = 10
    length: int = 128
    dtype: str = "auto"
    seeds: OneOrMany[int] = (1234,)
    recovery: OneOrMany[Any] = ("quick",)
    limit: Limit = 100
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1
    gpus: Annotated[float, Field(ge=0, le=1024)] = 0
    retries: Annotated[int, Field(ge=0, le=100)] = 2


@dataclass(frozen=True)
class SweepFile:
    """A validated sweep file and its cells."""

    name: str
    cells: tuple[Cell, ...]
    cpus: float
    gpus: float
    retries: int


def load_grid(file: Path) -> dict[str, Any]:
    """The content of a sweep's file; the default name is the file's.

    Raises:
        SettingsError: if it cannot be read or is not a sweep.
    """
    try:
        grid = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"{file} cannot be read: {' '.join(str(error).split())[:300]}. Correct it.") from None
    if not isinstance(grid, dict):
        raise SettingsError(f"{file} is not a sweep file. Compare it with the files in assets/sweeps.")
    grid.setdefault("name", _slug(file.stem))
    for entry in ("models", "texts"):  # jobs run in another folder
        if entry in grid:
            grid[entry] = [whole_path(str(value)) for value in _as_list(grid[entry])]
    read_sweep(grid)
    return grid


def read_sweep(grid: dict[str, Any]) -> SweepFile:
    """The cells of a grid: every model with every text and seed, planned and healed in every way.

    Raises:
        SettingsError: if an entry is invalid; the message names it.
    """
    try:
        parsed = SweepGrid.model_validate(grid)
        name, cells = check_name(parsed.name), tuple(_cells(parsed))
    except ValidationError as error:
        reason = explained(error)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, ExperimentError) as error:
        reason = f"{error}".rstrip(".")
    else:
        return SweepFile(name, cells, parsed.cpus, parsed.gpus, parsed.retries)
    raise SettingsError(
        f"Cannot read the sweep: {' '.join(reason.split())[:300]}. Compare it with the files in assets/sweeps."
    )


def _cells(grid: SweepGrid) -> Iterator[Cell]:
    plans = [plan for entry in grid.plans for plan in _plans(entry)]
    recoveries = [_recovery(entry) for entry in grid.recovery]
    parts_of = {"models": grid.models, "texts": grid.texts, "seeds": grid.seeds, "plans": plans, "recovery": recoveries}
    for name, entries in parts_of.items():
        if not entries:
            raise SettingsError(f"{name} has no entry, so the sweep has no runs. Choose one or more.")
    combinations = list(itertools.product(grid.models, grid.texts, grid.seeds, plans, recoveries))
    if len(combinations) > MOST_CELLS:
        raise SettingsError(f"The sweep has {len(combinations):,} runs. Choose at most {MOST_CELLS:,}.")
    seen: dict[str, Cell] = {}
    for model, text, seed, (plan_name, plan), (recovery_name, recovery) in combinations:
        settings = ExperimentSettings(model, text, grid.count, grid.length, seed, grid.dtype)
        parts = [grid.name, Path(model).name, Path(text).name, str(seed)]
        whole = repr(settings).removeprefix("Experiment")  # keeps the hashes in existing names valid
        experiment, run = _name(parts, whole), _name([plan_name, recovery_name], "")
        cell = Cell(experiment, run, settings, plan, recovery, grid.limit)
        if cell.name not in seen:
            seen[cell.name] = cell
            yield cell
        elif seen[cell.name] != cell:
            raise SettingsError(f"Two different runs of the sweep would be named {cell.name}. Change one of them.")


def _plans(entry: PlanEntry) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and options of each plan that an entry names."""
    options: list[str] = []
    if entry.planner is not None:
        PLANNERS.check(entry.planner)
        options = ["--planner", entry.planner]
    if entry.rule is not None or entry.planner is None:
        MERGE_RULES.check(entry.rule or DEFAULT_RULE)
        options += ["--rule", entry.rule or DEFAULT_RULE]
    kind = next(kind for kind in AMOUNTS if getattr(entry, kind))
    for amount in getattr(entry, kind):
        name = "-".join(filter(None, [entry.planner, entry.rule, _amount_name(kind, amount)]))
        yield name, (*options, f"--{kind}", f"{amount}")


def _amount_name(kind: str, amount: Any) -> str:
    if kind == "ratio":
        return f"{100 * amount:.6g}pc"
    if kind == "threshold":
        return f"t{amount}"
    return f"{amount}" if kind == "layers" else f"{kind}-{amount}"


def _recovery(entry: Any) -> tuple[str, tuple[str, ...]]:
    """Name and options of a recovery: none, a preset's name, or a preset with settings changed."""
    if entry == "none":
        return "merged", ("--no-recovery",)
    changes = {"preset": entry} if isinstance(entry, str) else dict(entry)
    settings = preset_settings(changes.pop("preset", "quick"), **changes)
    name = "-".join([settings.preset, *(f"{key}-{value}" for key, value in changes.items())])
    return name, tuple(recovery_arguments(vars(settings)))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def _name(parts: Sequence[str], whole: str) -> str:
    """A name joined from parts; with a hash of parts and `whole` if `whole` is given or the name is too long."""
    name = "-".join(_slug(part) for part in parts)
    digest = hashlib.sha256(f"{parts}{whole}".encode()).hexdigest()[:6]
    return f"{name[:57]}-{digest}" if whole or len(name) > 64 else name
