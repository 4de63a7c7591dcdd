"""The plan for a target, as far as it is known on disk, and what is missing until it is sure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from swm.plan import DEFAULT_RULE, MergePlan, Window
from swm.search.kept_path import kept_path
from swm.search.threshold_path import PlanAt, ThresholdPath
from swm.workspace.experiments import Experiment

NOT_SEARCHED = "This plan has not been searched yet."
NOT_SMALLER = "Not every smaller plan has been tried yet."
NOT_MEASURED = "Not every such plan has a perplexity yet, so another one may be better."


@dataclass(frozen=True)
class Found:
    """A plan that meets a target, with its similarity and the perplexities of it and of the original, by windows."""

    plan: MergePlan
    similarity: float | None
    perplexities: dict[tuple[Window, ...], float]


Known = tuple[Found | None, str]
"""The plan (None: not found, or there is none) and what is missing (empty: nothing, it is sure)."""


def walk_with(experiment: Experiment, counts: Sequence[int], serves: Callable[[MergePlan], bool]) -> Known:
    """The path's plan with the first of these numbers of layers that any threshold leaves, if its size serves."""
    path = kept_path(experiment, DEFAULT_RULE)
    if path is None:
        return None, NOT_SEARCHED
    for layers in counts:
        steps = [step for step in path.intervals() if step.plan.layers_left == layers]
        if steps and serves((step := path.plan_with_layers(layers)).plan):
            sure = path.knows_all_with(layers) and _all_measured(steps)
            return _of_path(path, step), "" if sure else NOT_MEASURED
        if not path.knows_all_with(layers):
            return None, NOT_SEARCHED
    return None, ""


def walk_within(experiment: Experiment, factor: float) -> Known:
    """The path's smallest plan within `factor` times the original's perplexity."""
    path = kept_path(experiment, DEFAULT_RULE)
    if path is None:
        return None, NOT_SEARCHED
    sure = path.is_complete
    step = path.smallest_within(factor)
    return _of_path(path, step) if step else None, "" if sure else NOT_SMALLER if step else NOT_SEARCHED


def planned_with(
    experiment: Experiment,
    planner: str,
    counts: Sequence[int],
    keep_period: bool,
    serves: Callable[[MergePlan], bool],
    keep: str = "",
) -> Known:
    """A planner's plan with the first of these numbers of layers that it has been found with, if its size serves."""
    for layers in counts:
        data = experiment.planned(planner, layers, keep)
        if data and data.get("keep_period", False) == keep_period and serves(MergePlan.from_dict(data)):
            return _planned(data), ""
    return None, NOT_SEARCHED


def planned_within(experiment: Experiment, planner: str, factor: float, keep_period: bool, keep: str = "") -> Known:
    """A planner's smallest plan found within `factor` times the original's perplexity."""
    plans = [data for data in experiment.plans_found() if data["planner"] == planner]
    plans = [data for data in plans if data.get("keep_period", False) == keep_period and data.get("keep", "") == keep]
    found = {MergePlan.from_dict(data).layers_left: data for data in plans}
    within = [n for n, data in found.items() if data["perplexity"] <= factor * data["perplexity_original"]]
    least = min(within, default=experiment.layer_count)
    if not within:
        return None, "" if experiment.layer_count - 1 in found else NOT_SEARCHED
    return _planned(found[least]), "" if least - 1 in found or least == 2 else NOT_SMALLER


def _all_measured(steps: Sequence[PlanAt]) -> bool:
    return all(step.perplexity is not None for step in steps)


def _of_path(path: ThresholdPath, step: PlanAt) -> Found:
    return Found(step.plan, step.similarity, path.perplexities)


def _planned(data: dict[str, Any]) -> Found:
    plan = MergePlan.from_dict(data)
    return Found(plan, data["similarity"], {(): data["perplexity_original"], plan.windows: data["perplexity"]})
