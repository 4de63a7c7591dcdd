"""The plan at a threshold or with a number of layers, searched if it is not on disk."""

from __future__ import annotations

from collections.abc import Callable

from swm.errors import SettingsError
from swm.merging.apply import check_plan
from swm.models.locate import load_config, skeleton
from swm.models.processes import agreed, is_first
from swm.plan import DEFAULT_RULE, check_layers
from swm.progress import Progress, no_progress
from swm.registry import MERGE_RULES
from swm.search.kept_path import kept_path, save_path
from swm.search.threshold_path import PlanAt, ThresholdPath
from swm.search.walk import check_threshold
from swm.stages.loading import check_text, load_original
from swm.stages.measure_plan import measured_path
from swm.stages.search import Loaded, bench_for, exact_plan, path_to_extend, scorer_for, search_path
from swm.workspace.experiments import Experiment

SETTLING = 8  # most plans of one depth to measure exactly, one after another


def plan_for(
    experiment: Experiment,
    *,
    threshold: float | None = None,
    layers: int | None = None,
    rule: str = DEFAULT_RULE,
    progress: Progress = no_progress,
    precision: str = "auto",
    load: Callable[[], Loaded] | None = None,
) -> PlanAt:
    """The plan at a threshold or with a number of layers: from the path if computed there, otherwise searched now.

    Among plans with that number of layers, the one with the lowest perplexity on the calibration text.

    Args:
        load: loads the model; for callers that need the model as well.

    Raises:
        SettingsError: if threshold, layers or rule is invalid. PlanError: if no threshold of the path leaves `layers`
            layers; the message names the nearest known depths.
    """
    if known := agreed(known_plan(experiment, threshold=threshold, layers=layers, rule=rule, precision=precision)):
        return known
    path = agreed(kept_path(experiment, rule))
    if threshold is not None:
        return _searched_plan(experiment, threshold, rule, progress, load and load(), precision)
    assert layers is not None
    path = search_path(
        experiment, rule, path.low if path else 0.5, progress=progress, precision=precision, layers=layers
    )
    step = settled(experiment, path, lambda path: path.plan_with_layers(layers), progress, load)
    assert step is not None
    return step


def settled(
    experiment: Experiment,
    path: ThresholdPath,
    choose: Callable[[ThresholdPath], PlanAt | None],
    progress: Progress = no_progress,
    load: Callable[[], Loaded] | None = None,
) -> PlanAt | None:
    """The plan that `choose` takes from a path, its similarity exact: that is measured, and can change the choice."""
    step, loaded = choose(path), None
    for _ in range(SETTLING):
        if step is None or path.is_exact(step.plan):
            break
        loaded = loaded or (load() if load else load_original(experiment, offload=True))
        path = measured_path(experiment, step.plan, progress, loaded)
        step = choose(path)
    return step


def _searched_plan(
    experiment: Experiment, threshold: float, rule: str, progress: Progress, loaded: Loaded | None, precision: str
) -> PlanAt:
    """The plan at one threshold, searched; the measured similarities are saved in the path."""
    progress(0, 0, "searching the plan" if loaded else "loading the model")
    bench = bench_for(experiment, rule, loaded)
    asked = "auto" if kept_path(experiment, rule) else precision
    path = agreed(path_to_extend(experiment, bench.model, rule, precision=asked))
    scorer, layers = scorer_for(bench, rule, path.scoring), experiment.layer_count - 1
    step = exact_plan(path, bench, scorer, threshold, lambda layer: progress(layer, layers, f"layer {layers - layer}"))
    path.layer_runs += scorer.layer_runs
    if not experiment.read_only and is_first():
        save_path(experiment, path)
    check_plan(bench.model, step.plan)
    return step


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
