"""The plan that the options of a command name."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from functools import partial
from typing import Any, cast

from swm.cli.watched import watched
from swm.errors import SettingsError
from swm.plan import DEFAULT_RULE, MergePlan, layers_at, parse_windows
from swm.search.threshold_path import PlanAt
from swm.settings import PLAN_BUDGET, RecoverySettings, preset_settings
from swm.workspace.experiments import Experiment


def measured_plan(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """A plan by hand, or of a planner, with its similarity and perplexity."""
    from swm.stages.measure_plan import measure_plan
    from swm.stages.plan_by import plan_by

    if not options.planner:
        plan = MergePlan(experiment.layer_count, parse_windows(options.windows), options.rule or DEFAULT_RULE)
        measured = partial(measure_plan, experiment, plan)
    else:
        measured = partial(
            plan_by,
            experiment,
            options.planner,
            cast(int, layers_asked(experiment, options)),
            PLAN_BUDGET if options.budget is None else options.budget,
            rule=options.rule,
            precision=options.precision,
        )
    if experiment.read_only:
        return measured()
    with watched(experiment, "plan") as progress:
        return measured(progress=progress)


def layers_asked(experiment: Experiment, options: argparse.Namespace) -> int | None:
    """How many layers are to be left, where the options say it."""
    if options.planner and options.layers is None and options.ratio is None:
        raise SettingsError("A planner needs to know how many layers to leave. Say --layers or --ratio.")
    if options.ratio is None:
        return cast("int | None", options.layers)
    return layers_at(options.ratio, experiment.layer_count)


def chosen_plan(experiment: Experiment, options: argparse.Namespace) -> PlanAt:
    """The plan that the options name; a search that it needs is a job of the experiment."""
    from swm.stages.known_plan import known_plan
    from swm.stages.plan import plan_for

    rule = options.rule or DEFAULT_RULE
    asked = {"threshold": options.threshold, "layers": layers_asked(experiment, options), "rule": rule}
    asked["precision"] = options.precision
    known = known_plan(experiment, **asked)
    if known or experiment.read_only:
        return known or plan_for(experiment, **asked)
    with watched(experiment, "search") as progress:
        return plan_for(experiment, **asked, progress=progress)


def windows_text(plan: MergePlan) -> str:
    """A plan's windows as they are typed."""
    return ",".join(map(str, plan.windows)) or "none"


def recovery_settings(options: argparse.Namespace) -> RecoverySettings:
    """The preset with what the options change; a file by its full path, as it may be read again elsewhere."""
    names = [field.name for field in fields(RecoverySettings) if field.name != "preset"]
    changed = {name: getattr(options, name) for name in names}
    if (changed["texts"] or "").endswith((".txt", ".jsonl")):
        changed["texts"] = os.path.abspath(os.path.expanduser(changed["texts"]))
    return preset_settings(options.preset, **changed)
