"""The plan at a threshold or depth, if the path on disk already has it."""

from __future__ import annotations

from swm.errors import SettingsError
from swm.merging.apply import check_plan
from swm.models.locate import load_config, skeleton
from swm.plan import (
    DEFAULT_RULE,
    check_layers,
)
from swm.registry import MERGE_RULES
from swm.search.kept_path import kept_path
from swm.search.threshold_path import PlanAt
from swm.search.walk import check_threshold
from swm.stages.loading import check_text
from swm.workspace.experiments import Experiment


def known_plan(
    experiment: Experiment,
    *,
    threshold: float | None = None,
    layers: int | None = None,
    rule: str = DEFAULT_RULE,
    precision: str = "auto",
) -> PlanAt | None:
    """Like `plan_for`, but only from the computed and exact part of the path; None if a search is needed."""
    MERGE_RULES.check(rule)
    if (threshold is None) == (layers is None):
        raise SettingsError("Pass either --threshold or --layers.")
    if not experiment.read_only and experiment.settings.texts.endswith((".txt", ".jsonl")):  # other texts do not change
        check_text(experiment)
    path = kept_path(experiment, rule)
    if threshold is not None:
        check_threshold(threshold)
        step = path.plan_at(threshold) if path else None
        if path is None or step is None or experiment.read_only:
            return step
        return None if path.unsure_trials(step) else _savable(experiment, step)
    assert layers is not None
    check_layers(layers, experiment.layer_count)
    if path is None or not path.knows_all_with(layers):
        return None
    fitting = [step for step in path.intervals() if step.plan.layers_left == layers]
    if not experiment.read_only and any(step.perplexity is None for step in fitting):
        return None
    step = path.plan_with_layers(layers)
    exact = path.is_exact(step.plan) and (precision != "exact" or path.scoring == "exact")
    if experiment.read_only:
        return step
    return _savable(experiment, step) if exact else None


def _savable(experiment: Experiment, step: PlanAt) -> PlanAt:
    """The same step, after checking that a config can describe the smaller model; reads no weights."""
    name = experiment.settings.model
    check_plan(skeleton(load_config(name), name), step.plan)
    return step
