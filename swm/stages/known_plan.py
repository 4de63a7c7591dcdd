"""The plan at a threshold or depth, if the path on disk already has it."""

from __future__ import annotations

from swm.errors import SettingsError
from swm.merging.apply import check_plan
from swm.models.locate import load_config, skeleton
from swm.plan import DEFAULT_RULE, check_layers
from swm.registry import MERGE_RULES
from swm.search.kept_path import kept_path
from swm.search.threshold_path import PlanAt, ThresholdPath
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
    else:
        check_layers(layers or 0, experiment.layer_count)
    if path is None:
        return None
    step = path.plan_at(threshold) if threshold is not None else _with_layers(experiment, path, layers or 0)
    if step is None or experiment.read_only:
        return step
    sure = path.is_exact(step.plan) if layers is not None else not path.unsure_trials(step)
    if layers is not None and precision == "exact" and path.scoring != "exact":
        sure = False
    return _savable(experiment, step) if sure else None


def _with_layers(experiment: Experiment, path: ThresholdPath, layers: int) -> PlanAt | None:
    """The path's plan with so many layers; None if it may have others, or a perplexity is missing to choose by."""
    if not path.knows_all_with(layers):
        return None
    fitting = [step for step in path.intervals() if step.plan.layers_left == layers]
    if not experiment.read_only and any(step.perplexity is None for step in fitting):
        return None
    return path.plan_with_layers(layers)


def _savable(experiment: Experiment, step: PlanAt) -> PlanAt:
    """The same step, after checking that a config can describe the smaller model; reads no weights."""
    name = experiment.settings.model
    check_plan(skeleton(load_config(name), name), step.plan)
    return step
