"""Grids of studies, declared in assets/studies.yaml: methods, depths, and how they are scored. No torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field

from swm.checked import Many, checked, convert
from swm.errors import SettingsError
from swm.evaluation.task_names import Limit, parse_tasks
from swm.plan import WHOLE_WIDTH, WidthCut, layers_at
from swm.registry import MERGE_RULES, PLANNERS
from swm.settings import SKIPPED_TOKENS, RecoverySettings, preset_settings
from swm.similarity.measure import Measure
from swm.workspace.controls import CONTROL
from swm.workspace.experiments import Experiment
from swm.workspace.files import APP_FOLDER

GRIDS = APP_FOLDER / "assets" / "studies.yaml"
KINDS = {
    "methods": "All methods at several depths: perplexity, scores, speed (the paper's tables 1 and 2).",
    "healing": "Before and after LoRA at several depths (figure 4).",
    "width": "Score against depth, with width pruned as well, at equal parameter counts (figure 3).",
    "thresholds": "Layers left, perplexity and score against the threshold, for every merge rule (figure 5).",
    "texts": "Heat maps of the zero-shot tasks' prompts (figure 1).",
}
SEED = "-seed-"  # in the name of a run that is healed with another seed than the one in its recovery settings
OF_RUNS = ("methods", "healing", "width")


def _tasks(value: Any) -> Any:
    return () if value == "none" else parse_tasks(value) if isinstance(value, str) else value


def _not_none(value: Any) -> Any:
    if value is None:
        raise ValueError("must be a number (got None)")
    return value


def _recovery(value: Any) -> Any:
    """The recovery settings from a preset's name and the settings to change; any other value unchanged."""
    if not isinstance(value, dict) or "preset" not in value:
        return value
    return preset_settings(**value)


Tasks = Annotated[Many[str], convert(_tasks)]
Recovery = Annotated[RecoverySettings, convert(_recovery)]


@dataclass(frozen=True)
class Cell:
    """One method at one depth, then a width cut. A method is a planner, or a merge rule for the threshold walk."""

    method: str
    layers: int
    recovery: RecoverySettings | None = None  # None means no healing
    width: WidthCut = WHOLE_WIDTH
    seed: int | None = None  # of healing, if it differs from the seed in the grid's recovery

    @property
    def name(self) -> str:
        """The name in tables and charts."""
        return self.width.after(self.method)

    @property
    def run(self) -> str:
        """The name of its run."""
        name = f"{self.method.replace('_', '-')}-{self.layers}"
        if self.width.ratio:
            name += f"-{self.width.method}-{1000 * self.width.ratio:.0f}"
        return name if self.seed is None else f"{name}{SEED}{self.seed}"


@checked
class Grid:
    """The grid of a study that creates runs; see assets/studies.yaml.

    Attributes:
        total: total share of the layers' weights to remove; whatever depth does not remove is removed by width, with
            the methods in `width_by`. None means no width cut.
        lora_alone: methods in `heal` whose merged layers are not fitted before LoRA, as in their papers.
        seeds: seeds with which each method in `heal` is healed; its row has the means. Empty for `recovery`'s own seed.
        control: whether the original model is healed in the same way, once for each seed, if any method is healed.
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
    control: bool = True

    def __post_init__(self) -> None:
        for planner in self.planners:
            PLANNERS.check(planner)
        for rule in self.rules:
            MERGE_RULES.check(rule)
        unknown = sorted({*self.heal} - {*self.planners, *self.rules})
        if unknown:
            raise SettingsError(
                f"The grid heals {', '.join(unknown)}, but does not plan it. Add it to planners or rules."
            )
        if fitted := sorted({*self.lora_alone} & {"best", "fit"}):
            raise SettingsError(
                f"The grid names {fitted[0]} under lora_alone, but its merge rule fits the layers. Remove it there."
            )
        if unhealed := sorted({*self.lora_alone} - {*self.heal}):
            raise SettingsError(
                f"The grid names {', '.join(unhealed)} under lora_alone, but does not heal it. Add it to heal."
            )
        for method in self.width_by:
            WidthCut(0.0, method)
        for seed in self.seeds:
            replace(self.recovery, seed=seed)  # raises if out of range
        if len({*self.seeds}) < len(self.seeds):
            raise SettingsError("The grid names a seed twice. List each seed once.")
        for ratio in (*self.ratios, self.total or 0.0):
            if not 0 <= ratio < 1:
                raise SettingsError(f"Ratio {ratio} is out of range. Choose 0 or more, and less than 1.")

    def cells(self, layer_count: int) -> list[Cell]:
        """All cells, seed by seed: the control, then depth by depth. What is complete can be compared early."""
        places = [
            (method, layers, width)
            for layers in dict.fromkeys(layers_at(ratio, layer_count) for ratio in self.ratios)
            for method in (*self.planners, *self.rules)
            for width in self._widths(layers / layer_count)
        ]
        if self.heal and self.control:
            places.insert(0, (CONTROL, layer_count, WHOLE_WIDTH))
        own, healed = self.recovery.seed, (*self.heal, CONTROL)
        return [
            Cell(method, layers, self._recovery_of(method, seed), width, None if seed == own else seed)
            if method in healed
            else Cell(method, layers, None, width)
            for round_, seed in enumerate(self.seeds or (own,))
            for method, layers, width in places
            if method in healed or round_ == 0
        ]

    def _recovery_of(self, method: str, seed: int) -> RecoverySettings:
        return replace(self.recovery, seed=seed, repair="none" if method in self.lora_alone else self.recovery.repair)

    def _widths(self, left: float) -> list[WidthCut]:
        """The width cuts that bring the removed share of weights to `total`; none if depth already removed more."""
        if self.total is None:
            return [WHOLE_WIDTH]
        ratio = round(1 - (1 - self.total) / left, 3)
        return list(dict.fromkeys(WidthCut(ratio, by) if ratio > 0 else WHOLE_WIDTH for by in self.width_by))


@checked
class ThresholdGrid:
    """The grid of the study of thresholds.

    Attributes:
        low: lowest threshold of the paths; None computes no whole paths, only the walks at `scored_at`.
        scored_at: thresholds whose plans are scored on `limit` documents of `task` (None: all documents).
    """

    rules: Many[str]
    low: Annotated[float | None, BeforeValidator(_not_none)] = Field(default=None, alias="from")
    scored_at: Many[float] = ()
    task: str = "hellaswag"
    limit: Limit = 100

    def __post_init__(self) -> None:
        for rule in self.rules:
            MERGE_RULES.check(rule)
        if self.low is None and not self.scored_at:
            raise SettingsError("The grid has no thresholds. Set from (for whole paths) or scored_at.")
        if self.low is not None and not 0 < self.low <= 1:
            raise SettingsError(f"from: {self.low} is out of range. Use a value above 0 and at most 1.")
        for threshold in self.scored_at:
            if not (self.low or 0) <= threshold <= 1 or not threshold:
                allowed = f"from {self.low} to 1" if self.low else "above 0 and at most 1"
                raise SettingsError(f"Threshold {threshold} of scored_at is out of range. Use a value {allowed}.")

    def scores_in(self, kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows among a study's saved scores that belong to this grid."""
        rows = [row for row in kept if (row["task"], row["limit"]) == (self.task, self.limit)]
        return [row for row in rows if row["rule"] in self.rules and row["threshold"] in self.scored_at]


@checked
class TextsGrid:
    """The grid of the study of texts: layer similarity is measured on each of them."""

    metric: str
    texts: Many[str]

    def __post_init__(self) -> None:
        _ = self.measures

    @property
    def measures(self) -> list[Measure]:
        """The similarity measure for each text."""
        return [Measure(self.metric, skip_tokens=SKIPPED_TOKENS, texts=text) for text in self.texts]


def parsed_grid(kind: str, grid: dict[str, Any]) -> Grid | ThresholdGrid | TextsGrid:
    """The validated grid of a study; raises SettingsError if it is not valid for that kind."""
    if kind in OF_RUNS:
        return Grid(**grid)
    return ThresholdGrid(**grid) if kind == "thresholds" else TextsGrid(**grid)


def tasks_of(grid: Grid | ThresholdGrid | TextsGrid) -> tuple[str, ...]:
    """The tasks that a grid scores models on."""
    if isinstance(grid, Grid):
        return grid.tasks
    return (grid.task,) if isinstance(grid, ThresholdGrid) and grid.scored_at else ()


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
