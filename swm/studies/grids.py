"""Grids of studies, declared in assets/studies.yaml: methods, depths, and how they are scored. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from swm.checked import Between, Many, checked, convert
from swm.errors import SettingsError
from swm.evaluation.task_names import Limit, parse_tasks
from swm.plan import WHOLE_WIDTH, WidthCut, layers_at
from swm.registry import MERGE_RULES, PLANNERS
from swm.reporting.seeds import SEED
from swm.settings import CACHE_TOKENS, SKIPPED_TOKENS, USUAL_REQUESTS, RecoverySettings, preset_settings
from swm.similarity.measure import Measure
from swm.texts.ability_names import chosen_abilities
from swm.texts.requests import MOST
from swm.workspace.controls import CONTROL
from swm.workspace.experiments import Experiment
from swm.workspace.targets import (
    LEAST_LAYERS,
    LOSS,
    MEMORY,
    PARAMETERS,
    SPEED,
    count_from,
    loss_from,
    most_layers,
    size_from,
)

KINDS = {
    "methods": "All methods at several depths: perplexity, scores, speed (the paper's tables 1 and 2).",
    "healing": "Before and after LoRA at several depths (figure 4).",
    "abilities": "What each method keeps and gives up at equal depth, and what healing brings back.",
    "width": "Score against depth, with width pruned as well, at equal parameter counts (figure 3).",
    "thresholds": "Layers left, perplexity and score against the threshold, for every merge rule (figure 5).",
    "texts": "Heat maps of the zero-shot tasks' prompts (figure 1).",
}
OF_RUNS = ("methods", "healing", "abilities", "width")
Within = dict[str, dict[str, int]]  # by method and target, the layers of the smallest or largest plan that meets it
Target = tuple[str, str, float]  # what it is called, its kind and its value


def _tasks(value: Any) -> Any:
    return () if value == "none" else parse_tasks(value) if isinstance(value, str) else value


def _abilities(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
        value = ",".join(value) or "none"
    if not isinstance(value, str):
        return value
    return () if value == "none" else tuple(chosen_abilities(value))


def _recovery(value: Any) -> Any:
    """The recovery settings from a preset's name and the settings to change; any other value unchanged."""
    if not isinstance(value, dict) or "preset" not in value:
        return value
    return preset_settings(**value)


Tasks = Annotated[Many[str], convert(_tasks)]
Abilities = Annotated[Many[str], convert(_abilities)]
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
        ratios: shares of the layers to remove.
        memory: sizes such as 6GiB that weights and cache (of `cache_tokens`) must fit into: each is a depth, too; where
            layers differ in size, each method has its own.
        parameters: numbers of parameters such as 5.5B that a model may have at most: likewise.
        speedup: speeds relative to the original's, such as 1.3, that are expected at least: each is a depth, too.
        loss: losses of perplexity on the calibration text such as 5%: each method has the depth of its smallest plan
            within it.
        total: total share of the layers' weights to remove; whatever depth does not remove is removed by width, with
            the methods in `width_by`. None means no width cut.
        lora_alone: methods in `heal` whose merged layers are not fitted before LoRA, as in their papers.
        seeds: seeds with which each method in `heal` is healed; its row has the means. Empty for `recovery`'s own seed.
        control: whether the original model is healed in the same way, once for each seed, if any method is healed.
        abilities: what is asked of each model, before healing and after, as from `chosen_abilities`.
        requests: of each ability.
    """

    planners: Many[str]
    rules: Many[str]
    heal: Many[str]
    recovery: Recovery
    tasks: Tasks
    limit: Limit
    time: bool
    keep_models: bool
    ratios: Many[float] = ()
    memory: Many[str] = ()
    parameters: Many[str] = ()
    speedup: Many[Annotated[float, Between(1.001, 1000)]] = ()
    loss: Many[str] = ()
    cache_tokens: Annotated[int, Between(0, 10**9)] = CACHE_TOKENS
    total: float | None = None
    width_by: Many[str] = ("flap",)
    lora_alone: Many[str] = ()
    seeds: Many[int] = ()
    control: bool = True
    abilities: Abilities = ()
    requests: Annotated[int, Between(2, MOST)] = USUAL_REQUESTS

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
        if fitted := sorted({*self.lora_alone} & {"best", "fit", "scale"}):
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
        if not (self.ratios or self.memory or self.parameters or self.speedup or self.loss):
            raise SettingsError("The grid has no depths. List ratios, memory, parameters, speedup or loss.")
        for size in self.memory:
            size_from(size)
        for number in self.parameters:
            count_from(number)
        for loss in self.loss:
            loss_from(loss)

    def own_depths(self, facts: dict[str, Any]) -> list[Target]:
        """The targets for which each method has a depth of its own, because it depends on the plan.

        These are losses, and sizes of models whose layers differ in size.
        """
        found = [(loss, LOSS, loss_from(loss)) for loss in self.loss]
        for name, kind, value in self._sizes() if facts.get("layer_parameters") else ():
            if most_layers(facts, kind, value, None, self.cache_tokens) != facts["layers"]:
                cache = f" with {self.cache_tokens:,} tokens" if kind == MEMORY else ""
                found.append((name + cache, kind, value))
        return found

    def _sizes(self) -> list[Target]:
        return [
            *((f"memory: {text}", MEMORY, size_from(text)) for text in self.memory),
            *((f"parameters: {text}", PARAMETERS, count_from(text)) for text in self.parameters),
        ]

    def depths(self, facts: dict[str, Any], cost: dict[str, Any] | None = None) -> list[int]:
        """The numbers of layers to leave of a model, without repeats, and without targets that the original meets.

        Those of `own_depths` are not among them.

        Args:
            facts: of the model, as from `models.load.config_facts`.
            cost: its time per token, see `most_layers`; without it, depths of `speedup` are left out.

        Raises:
            SettingsError: if not even two layers of it meet a target, or nothing is left to do.
        """
        found, later = [layers_at(ratio, facts["layers"]) for ratio in self.ratios], list[int]()
        targets = [*self._sizes(), *((f"speedup: {speed:g}", SPEED, speed) for speed in self.speedup if cost)]
        own = (MEMORY, PARAMETERS) if facts.get("layer_parameters") else ()
        for target, kind, value in targets:
            layers = most_layers(facts, kind, value, cost, self.cache_tokens)
            if layers is None:
                raise SettingsError(
                    f"{target} cannot be met by this model: even {LEAST_LAYERS} of {facts['layers']} layers are "
                    "too many. Change it in the grid, or remove it."
                )
            if layers < facts["layers"]:
                (later if kind in own else found).append(layers)
        if not (found or later or self.loss or (self.speedup and not cost)):
            raise SettingsError("The original already meets every target of the grid: nothing to merge. Lower them.")
        return list(dict.fromkeys(found))

    def cells(
        self, facts: dict[str, Any], cost: dict[str, Any] | None = None, within: Within | None = None
    ) -> list[Cell]:
        """All cells, seed by seed: the control, then depth by depth. What is complete can be compared early.

        Args:
            facts, cost: of the model, as for `depths`.
            within: the depths of `own_depths` that are known; the others are left out.
        """
        layer_count: int = facts["layers"]
        pairs = [(method, layers) for layers in self.depths(facts, cost) for method in self.methods]
        for method in self.methods:
            known = (within or {}).get(method, {})
            pairs += [(method, known[name]) for name, _, _ in self.own_depths(facts) if name in known]
        places = [
            (method, layers, width)
            for method, layers in dict.fromkeys(pairs)
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

    @property
    def methods(self) -> tuple[str, ...]:
        """Planners and rules."""
        return (*self.planners, *self.rules)

    def _recovery_of(self, method: str, seed: int) -> RecoverySettings:
        return replace(self.recovery, seed=seed, repair="none" if method in self.lora_alone else self.recovery.repair)

    def _widths(self, left: float) -> list[WidthCut]:
        """The width cuts that bring the removed share of weights to `total`; none if depth already removed more."""
        if self.total is None:
            return [WHOLE_WIDTH]
        ratio = round(1 - (1 - self.total) / left, 3)
        return list(dict.fromkeys(WidthCut(ratio, by) if ratio > 0 else WHOLE_WIDTH for by in self.width_by))


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


def cells_of(experiment: Experiment, kind: str, grid: Grid) -> list[Cell]:
    """The cells of a study's grid; those of a speed or a loss only once the study has found their depths."""
    return grid.cells(experiment.model_facts, experiment.cost(), (experiment.study(kind) or {}).get("within"))


def _not_none(value: Any) -> Any:
    if value is None:
        raise ValueError("must be a number (got None)")
    return value


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
