"""The control of a healed run: the original model that got the same healing.

Training teaches a model the form of its text, whether layers were merged or not. What merging cost is therefore the
difference from the control, not from the untrained original.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from itertools import chain, count
from typing import Any

from swm.errors import ExperimentError
from swm.plan import MergePlan
from swm.settings import RecoverySettings
from swm.workspace.experiments import Experiment
from swm.workspace.recipe import recipe_of
from swm.workspace.runs import Run

CONTROL = "control"  # name of the first control, and the method of those that studies make
# Settings that make no difference to a plan without windows, or to any result.
WITHOUT_EFFECT = ("preset", "repair", "checkpointing")


def healing_of(run: Run) -> dict[str, Any] | None:
    """What two healed runs must share so that one can be the other's control; None if the run is not healed."""
    recovery = run.settings.get("recovery")
    if run.stage != "recovered" or not recovery:
        return None
    names = [field.name for field in fields(RecoverySettings) if field.name not in WITHOUT_EFFECT]
    return {name: recovery[name] for name in (*names, "text_hash", "examples_hash") if name in recovery}


def control_of(run: Run) -> Run | None:
    """The control of a healed run, preferably one that is evaluated; None if there is none, or it is a control."""
    healing = None if run.is_baseline or run.is_control else healing_of(run)
    if healing is None:
        return None
    same = [other for other in run.experiment.runs() if other.is_control and healing_of(other) == healing]
    return next((other for other in same if other.is_evaluated), same[0] if same else None)


def planned_control(run: Run) -> tuple[Run, RecoverySettings]:
    """The control of a healed run, created if there is none, and the settings to heal it with.

    Raises:
        ExperimentError: if the run is not healed, or is itself a control.
    """
    recovery = recipe_of(run).recovery
    if recovery is None or run.is_control:
        raise ExperimentError(f"Run {run.name} is not a healed, merged model, so it needs no control. Heal it first.")
    if existing := control_of(run):
        return existing, recipe_of(existing).recovery or recovery
    name = _free_name(run.experiment, recovery)
    return run.experiment.create_run(name, MergePlan(run.experiment.layer_count), similarity=1.0), recovery


def _free_name(experiment: Experiment, settings: RecoverySettings) -> str:
    """The name for the control with these settings: that of an unfinished one, or the first free one."""
    for name in chain([CONTROL], (f"{CONTROL}-{number}" for number in count(2))):
        run = Run(experiment, name)
        if not run.is_there():
            break
        started = run.settings.get("recovery") or run.settings.get("recovery_started")
        if run.is_control and (started is None or _equal(started, settings)):
            break
    return name


def _equal(recovery: dict[str, Any], settings: RecoverySettings) -> bool:
    return all(recovery.get(name, value) == value for name, value in asdict(settings).items())
