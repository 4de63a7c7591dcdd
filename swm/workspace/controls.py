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


def is_same_healing(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two recoveries, as in run.json, train alike, so that a run of one can be the control of the other.

    Older files lack settings that came later, which then had their default, and hashes of the text.
    """
    fields_alike = all(
        first.get(field.name, field.default) == second.get(field.name, field.default)
        for field in fields(RecoverySettings)
        if field.name not in WITHOUT_EFFECT
    )
    hashes = ("text_hash", "examples_hash")
    return fields_alike and all(first[name] == second[name] for name in hashes if first.get(name) and second.get(name))


def control_of(run: Run) -> Run | None:
    """The control of a healed run, preferably one that is evaluated; None if there is none, or it is a control."""
    if run.stage != "recovered" or run.is_control:
        return None
    recovery = run.settings["recovery"]
    controls = [other for other in run.experiment.runs() if other.is_control]
    same = [other for other in controls if is_same_healing(other.settings["recovery"], recovery)]
    return next((other for other in same if other.is_evaluated), same[0] if same else None)


def planned_control(run: Run) -> tuple[Run, RecoverySettings]:
    """The control of a healed run, created if there is none, and the settings to heal it with.

    Raises:
        ExperimentError: if the run is not healed, or is itself a control.
    """
    recovery = recipe_of(run).recovery
    if run.is_control:
        raise ExperimentError(f"Run {run.name} is itself a control: name a run that was merged and healed.")
    if recovery is None:
        raise ExperimentError(
            f"Run {run.name} is not healed yet, so there is nothing to compare with a control. Heal it first: "
            f"python -m swm recover {run.experiment.name} {run.name}"
        )
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
        if run.merges_nothing and (started is None or _equal(started, settings)):
            break
    return name


def _equal(recovery: dict[str, Any], settings: RecoverySettings) -> bool:
    return all(recovery.get(name, value) == value for name, value in asdict(settings).items())
