"""From a command's options to a plan and to recovery settings; what commands share: their experiment and result."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar, cast

from swm.cli.watched import watched
from swm.errors import ExperimentError, PlanError, SettingsError
from swm.models.processes import agreed, is_first
from swm.plan import DEFAULT_RULE, MergePlan, layers_at, parse_windows
from swm.progress import Progress, no_progress
from swm.search.threshold_path import PlanAt
from swm.settings import (
    CACHE_TOKENS,
    PLAN_BUDGET,
    RecoverySettings,
    SearchOptions,
    preset_settings,
)
from swm.workspace.controls import control_of
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE, Run
from swm.workspace.targets import (
    LEAST_LAYERS,
    MEMORY,
    PARAMETERS,
    SPEED,
    check_meets,
    count_from,
    most_layers,
    size_from,
)

T = TypeVar("T")
LESS = ", a lower precision (--dtype) or fewer --cache-tokens"


def measured_plan(experiment: Experiment, options: argparse.Namespace, brief: bool = False) -> dict[str, Any]:
    """The plan of `--windows` or `--planner`, with its similarity and perplexity; `brief` as of `plan_by`."""
    from swm.stages.measure_plan import measure_plan
    from swm.stages.plan_by import plan_by
    from swm.stages.plan_within import first_found, smallest_within

    measure: Callable[..., dict[str, Any]]
    if not options.planner:
        plan = MergePlan(experiment.layer_count, parse_windows(options.windows), options.rule or DEFAULT_RULE)
        measure = partial(measure_plan, experiment, plan)
    else:
        how = SearchOptions(
            rule=options.rule,
            precision=options.precision,
            budget=PLAN_BUDGET if options.budget is None else options.budget,
            minutes=options.minutes,
            keep_period=options.keep_period,
            keep=options.keep or "",
        )
        planned = partial(plan_by, experiment, options.planner, how=how, brief=brief)
        if options.within is None:
            counts = counts_to_keep(experiment, options)

            def found(layers: int, **more: Any) -> dict[str, Any]:
                data = planned(layers, **more)
                check_target(experiment, options, MergePlan.from_dict(data))
                return data

            measure = partial(first_found, found, cast("Sequence[int]", counts))
        else:

            def measure(progress: Progress = no_progress) -> dict[str, Any]:
                return smallest_within(
                    options.within,
                    experiment.layer_count,
                    lambda layers, part: planned(layers, progress=part),
                    progress,
                )

    if experiment.read_only:
        return measure()
    with watched(experiment, "plan") as progress:
        return measure(progress=progress)


def counts_to_keep(experiment: Experiment, options: argparse.Namespace) -> Sequence[int | None]:
    """The layer counts that meet a target, the most layers first; [None] without a target in layers."""
    layers = layers_to_keep(experiment, options)
    exact = layers is None or options.layers is not None or options.ratio is not None
    return [layers] if exact or layers is None else range(layers, LEAST_LAYERS - 1, -1)


def layers_to_keep(experiment: Experiment, options: argparse.Namespace) -> int | None:
    """The layer count that a target asks for, other than a loss; None if there is none."""
    facts = experiment.model_facts
    if options.ratio is not None:
        return layers_at(options.ratio, experiment.layer_count)
    if options.memory is not None:
        if "cache_bytes_per_token" not in facts and options.cache_tokens:
            raise SettingsError(
                f"{experiment.name} does not know what the model keeps of each token: the model's config does not say "
                "it, or the experiment is from an earlier release. Without --cache-tokens, the weights count alone."
            )
        return _met(facts, most_layers(facts, MEMORY, _amount(options), cache_tokens=_cache_tokens(options)), LESS)
    if options.parameters is not None:
        return _met(facts, most_layers(facts, PARAMETERS, _amount(options)))
    if options.speedup is not None:
        return _met(facts, most_layers(facts, SPEED, options.speedup, _cost(experiment)))
    if options.planner and options.layers is None:
        raise SettingsError("--planner needs to know how many layers to keep. Add --layers, --ratio or another target.")
    return cast("int | None", options.layers)


def _amount(options: argparse.Namespace) -> float:
    """The number of bytes or of parameters that a target names."""
    return size_from(options.memory) if options.memory is not None else count_from(options.parameters)


def check_target(experiment: Experiment, options: argparse.Namespace, plan: MergePlan) -> None:
    """Raise PlanError if a plan's model is larger than its target, as it can be where layers differ in size."""
    kind = MEMORY if options.memory is not None else PARAMETERS if options.parameters is not None else SPEED
    if kind != SPEED:
        check_meets(experiment.model_facts, kind, _amount(options), plan, _cache_tokens(options))


def _cache_tokens(options: argparse.Namespace) -> int:
    return CACHE_TOKENS if options.cache_tokens is None else int(options.cache_tokens)


def _cost(experiment: Experiment) -> dict[str, Any]:
    """The original's time per token, measured now if it is not known."""
    if not agreed(experiment.cost()) and not experiment.read_only:
        from swm.stages.loading import load_original
        from swm.stages.measure import measure_cost

        with watched(experiment, "measure") as progress:
            if not experiment.cost() and is_first():  # another job may have measured it while this one waited
                progress(0, 0, "loading the model")
                measure_cost(experiment, load_original(experiment, offload=True), progress)
    if cost := agreed(experiment.cost()):
        return cost
    reason = "its weights do not fit into memory, or it keeps no cache between tokens"
    reason = "the experiment is read-only" if experiment.read_only else reason
    raise SettingsError(
        f"--speedup needs the original's speed, which cannot be measured: {reason}. Choose another target."
    )


def _met(facts: dict[str, Any], layers: int | None, cure: str = "") -> int:
    """The layer count; raises PlanError if no model meets the target, or the original does already."""
    if layers is None:
        raise PlanError(
            f"Not even {LEAST_LAYERS} of {facts['layers']} layers meet this target. Choose a smaller model{cure}."
        )
    if layers == facts["layers"]:
        raise PlanError("The original already meets this target: nothing to merge.")
    return layers


def chosen_plan(experiment: Experiment, options: argparse.Namespace) -> PlanAt:
    """The plan of a threshold or a target, searched if needed (a job of the experiment).

    Where no plan leaves the most layers that meet a memory, a speed or a number of parameters, one that leaves fewer
    serves.
    """
    from swm.stages.plan import known_plan, plan_for
    from swm.stages.plan_within import first_found, walk_within

    rule = options.rule or DEFAULT_RULE
    if options.within is not None:
        if experiment.read_only:
            return walk_within(experiment, options.within, rule)
        with watched(experiment, "search") as progress:
            return walk_within(experiment, options.within, rule, progress, options.precision)

    def find(count: int | None) -> PlanAt:
        request = {"threshold": options.threshold, "layers": count, "rule": rule, "precision": options.precision}
        plan = agreed(known_plan(experiment, **request))
        if not plan:
            with nullcontext(no_progress) if experiment.read_only else watched(experiment, "search") as progress:
                plan = plan_for(experiment, **request, progress=progress)
        check_target(experiment, options, plan.plan)
        return plan

    return first_found(find, counts_to_keep(experiment, options))


def windows_text(plan: MergePlan) -> str:
    """A plan's windows in the form that `--windows` takes; "none" if there are none."""
    return ",".join(map(str, plan.windows)) or "none"


def recovery_settings(options: argparse.Namespace) -> RecoverySettings:
    """The preset with the options' changes; a text file by its full path, so that it is found from any folder."""
    changed = dict(options.set)
    if changed.get("texts", "").endswith((".txt", ".jsonl")):
        changed["texts"] = os.path.abspath(os.path.expanduser(changed["texts"]))
    return preset_settings(options.preset, **{"steps": options.steps, **changed})


Result = tuple[Any, str]  # for --json, and as text
Entries = dict[str, Any]  # of run.json


def own_experiment(name: str) -> Experiment:
    """An experiment of the user's own; raises ExperimentError if it is read-only."""
    experiment = Experiment.open(name)
    if experiment.read_only:
        raise ExperimentError(experiment.why_read_only())
    return experiment


def compared(run: Run) -> Result:
    """The original, a run and its control side by side, with verdicts."""
    from swm.reporting.compare import compare
    from swm.reporting.figures import table
    from swm.reporting.judged import judged

    control = control_of(run)
    names = (BASELINE, run.name, control.name if control else None)
    rows = judged([row for row in compare(run.experiment) if row.run in names])
    return {"runs": [row.to_dict() for row in rows]}, table(rows)
