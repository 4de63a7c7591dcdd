"""Grids of studies, declared in assets/studies.yaml: which methods, at which depths, scored how. No torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field

from swm.checked import Many, checked, said
from swm.errors import SettingsError
from swm.evaluation.task_names import Limit, parse_tasks
from swm.plan import WHOLE_WIDTH, WidthCut, layers_at
from swm.registry import MERGE_RULES, PLANNERS
from swm.settings import RecoverySettings, preset_settings
from swm.similarity.measure import Measure
from swm.workspace.experiments import Experiment
from swm.workspace.files import APP_FOLDER

GRIDS = APP_FOLDER / "assets" / "studies.yaml"
KINDS = {
    "methods": "All methods at several depths: perplexity, scores, speed (the paper's tables 1 and 2).",
    "healing": "Before and after LoRA at several depths (figure 4).",
    "width": "Depth against score with width cut as well, at equal numbers of parameters (figure 3).",
    "thresholds": "Layers left, perplexity and score against threshold, for every merge rule (figure 5).",
    "texts": "Heat maps of the zero-shot tasks' prompts (figure 1).",
}
SEED = "-seed-"  # in the name of a run that is healed with another seed than the recovery's own
OF_RUNS = ("methods", "healing", "width")


def _tasks(value: Any) -> Any:
    return () if value == "none" else parse_tasks(value) if isinstance(value, str) else value


def _given(value: Any) -> Any:
    if value is None:
        raise ValueError("must be a number (got None)")
    return value


def _recovery(value: Any) -> Any:
    """A preset's name, and the settings that differ."""
    if not isinstance(value, dict) or "preset" not in value:
        return value
    return preset_settings(**value)


Tasks = Annotated[Many[str], said(_tasks)]
Recovery = Annotated[RecoverySettings, said(_recovery)]


@dataclass(frozen=True)
class Cell:
    """One method at one depth, and a cut in width after it. A method is a planner, or a rule of the threshold walk."""

    method: str
    layers: int
    recovery: RecoverySettings | None = None  # None leaves healing out
    width: WidthCut = WHOLE_WIDTH
    seed: int | None = None  # of healing, where it is not the one that the grid's recovery names

    @property
    def name(self) -> str:
        """What tables and charts call it."""
        return self.width.after(self.method)

    @property
    def run(self) -> str:
        """Name of its run."""
        name = f"{self.method.replace('_', '-')}-{self.layers}"
        if self.width.ratio:
            name += f"-{self.width.method}-{1000 * self.width.ratio:.0f}"
        return name if self.seed is None else f"{name}{SEED}{self.seed}"


@checked
class Grid:
    """What a study of runs asks of each; see assets/studies.yaml.

    Attributes:
        total: share of the layers' weights to remove in all: what depth leaves of it goes by width, `width_by`. None
            leaves width alone.
        lora_alone: those of `heal` whose merged layers are not fitted before LoRA, as their papers do it.
        seeds: each of `heal` is healed with each of them, and its row has their means; empty for `recovery`'s own.
    """

    ratios: Many[float]
    planners: Many[str]
    rules: Many[str]
    heal: Many[str]
    recovery: Recovery
    tasks: Tasks
    limit: Limit
    time: bool
    keep_models: bool
    total: float | None = None
    width_by: Many[str] = ("flap",)
    lora_alone: Many[str] = ()
    seeds: Many[int] = ()

    def __post_init__(self) -> None:
        for planner in self.planners:
            PLANNERS.check(planner)
        for rule in self.rules:
            MERGE_RULES.check(rule)
        unknown = sorted({*self.heal} - {*self.planners, *self.rules})
        if unknown:
            raise SettingsError(
                f"The grid heals {', '.join(unknown)}, but does not plan it. Name it as planner or rule."
            )
        if fitted := sorted({*self.lora_alone} & {"best", "fit"}):
            raise SettingsError(
                f"The grid names {fitted[0]} under lora_alone, but its rule solves for the layers. Leave it out there."
            )
        if unhealed := sorted({*self.lora_alone} - {*self.heal}):
            raise SettingsError(
                f"The grid names {', '.join(unhealed)} under lora_alone, but does not heal it. Name it under heal too."
            )
        for method in self.width_by:
            WidthCut(0.0, method)
        for seed in self.seeds:
            replace(self.recovery, seed=seed)  # raises
        if len({*self.seeds}) < len(self.seeds):
            raise SettingsError("The grid names a seed twice. Name each once.")
        for ratio in (*self.ratios, self.total or 0.0):
            if not 0 <= ratio < 1:
                raise SettingsError(f"Ratio {ratio} is out of range. Choose 0 or more, and less than 1.")

    def cells(self, layer_count: int) -> list[Cell]:
        """Depth by depth, so that all methods can be compared at the first before the next begins."""
        return [
            Cell(method, layers, recovery, width, None if seed == self.recovery.seed else seed)
            for layers in dict.fromkeys(layers_at(ratio, layer_count) for ratio in self.ratios)
            for method in (*self.planners, *self.rules)
            for width in self._widths(layers / layer_count)
            for seed, recovery in self._recoveries_of(method)
        ]

    def _recoveries_of(self, method: str) -> list[tuple[int, RecoverySettings | None]]:
        own = self.recovery.seed
        if method not in self.heal:
            return [(own, None)]
        recovery = replace(self.recovery, repair="none") if method in self.lora_alone else self.recovery
        return [(seed, replace(recovery, seed=seed)) for seed in self.seeds or (own,)]

    def _widths(self, left: float) -> list[WidthCut]:
        """The cuts after which so many of the layers' weights are gone as `total` says; none if depth took more."""
        if self.total is None:
            return [WHOLE_WIDTH]
        ratio = round(1 - (1 - self.total) / left, 3)
        return list(dict.fromkeys(WidthCut(ratio, by) if ratio > 0 else WHOLE_WIDTH for by in self.width_by))


@checked
class ThresholdGrid:
    """What the study of thresholds asks for.

    Attributes:
        low: where the threshold paths begin; None leaves the paths out but for the walks at `scored_at`.
        scored_at: thresholds whose plans are scored on `limit` documents of `task`; None for all documents.
    """

    rules: Many[str]
    low: Annotated[float | None, BeforeValidator(_given)] = Field(default=None, alias="from")
    scored_at: Many[float] = ()
    task: str = "hellaswag"
    limit: Limit = 100

    def __post_init__(self) -> None:
        for rule in self.rules:
            MERGE_RULES.check(rule)
        if self.low is None and not self.scored_at:
            raise SettingsError("The grid asks for no threshold. Name from, for whole paths, or scored_at.")
        if self.low is not None and not 0 < self.low <= 1:
            raise SettingsError(f"The grid's from: {self.low} is out of range. Choose more than 0, up to 1.")
        for threshold in self.scored_at:
            if not (self.low or 0) <= threshold <= 1 or not threshold:
                known = f"{self.low} to 1" if self.low else "more than 0, up to 1"
                raise SettingsError(f"Threshold {threshold} of scored_at is out of range. Choose {known}.")

    def scores_in(self, kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of a study's kept scores that this grid asks for."""
        how = (self.task, self.limit)
        asked = [row for row in kept if (row["task"], row["limit"]) == how]
        return [row for row in asked if row["rule"] in self.rules and row["threshold"] in self.scored_at]


@checked
class TextsGrid:
    """What the study of texts asks for: the similarity of layers on each of them."""

    metric: str
    texts: Many[str]

    def __post_init__(self) -> None:
        _ = self.measures

    @property
    def measures(self) -> list[Measure]:
        """The measure of each text."""
        return [Measure(self.metric, texts=text) for text in self.texts]


def parsed_grid(kind: str, grid: dict[str, Any]) -> Grid | ThresholdGrid | TextsGrid:
    """The grid of a study, checked; raises SettingsError if it is none of that kind."""
    if kind in OF_RUNS:
        return Grid(**grid)
    return ThresholdGrid(**grid) if kind == "thresholds" else TextsGrid(**grid)


def tasks_of(grid: Grid | ThresholdGrid | TextsGrid) -> tuple[str, ...]:
    """The tasks that a grid scores models on."""
    if isinstance(grid, Grid):
        return grid.tasks
    return (grid.task,) if isinstance(grid, ThresholdGrid) and grid.scored_at else ()


def grid_of(experiment: Experiment, kind: str, file: Path | None = None) -> dict[str, Any]:
    """A study's grid: the file's; without a file that of the study's last pass, and before one the usual grid.

    Raises:
        SettingsError: if there is no such study, or its grid cannot be read.
    """
    last = (experiment.study(kind) or {}).get("grid") if kind in KINDS and not file else None
    return checked_grid(kind, last, f"The study of {experiment.name}") if last else read_grid(kind, file)


def read_grid(kind: str, file: Path | None = None) -> dict[str, Any]:
    """A study's grid as the file says it, checked.

    Raises:
        SettingsError: if there is no such study, or the file has no grid for it that can be.
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
    """The grid itself; raises SettingsError, naming `where` it lies, if it is none of that kind."""
    try:
        parsed_grid(kind, grid)
    except (SettingsError, TypeError, ArithmeticError) as error:  # names that are no text, numbers beyond all bounds
        raise _unreadable(kind, where, str(error)) from None
    return grid


def _unreadable(kind: str, where: str, reason: str) -> SettingsError:
    reason = " ".join(reason.split()).rstrip(".")[:300]
    return SettingsError(
        f"{where} has no grid '{kind}' that can be read ({reason}). Compare it with {GRIDS}, or pass that file: --grid."
    )


def grid_text(kind: str) -> str:
    """The part of assets/studies.yaml that declares a study."""
    lines = GRIDS.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"{kind}:"))
    rest = itertools.takewhile(lambda line: not line or line[0] == " ", lines[first + 1 :])
    return "\n".join([lines[first], *rest]).rstrip()


def grid_yaml(kind: str, grid: dict[str, Any]) -> str:
    """A grid as a file would declare it, to be shown and copied."""
    return yaml.safe_dump({kind: grid}, sort_keys=False, default_flow_style=None, width=110).rstrip()
