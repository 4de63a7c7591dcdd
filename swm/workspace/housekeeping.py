"""Copies, renames and deletes whole experiments and runs."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from swm.disk.files import (
    clean_up,
    demo_experiment,
    disk_errors,
    neighbour,
    read_json,
    remove,
    set_aside,
    write_json,
)
from swm.disk.names import check_name, check_new, read_only_message
from swm.errors import ExperimentError, JobError
from swm.workspace.experiments import Experiment
from swm.workspace.people import person, record
from swm.workspace.runs import BASELINE, Run
from swm.workspace.shared_home import names_locked
from swm.workspace.tracked import job_lock


def copy_experiment(experiment: Experiment, name: str) -> Experiment:
    """A new experiment with all results and plans of another, shipped ones included; without models and checkpoints.

    Raises:
        ExperimentError: if the name cannot be used.
    """
    check_name(name)
    if demo_experiment():
        raise ExperimentError(read_only_message(name))
    with names_locked():
        folder = check_new(name)
        unfinished = neighbour(folder, "new")  # the copy appears complete or not at all
        with disk_errors(folder, 0):
            try:
                shutil.copytree(experiment.folder, unfinished, ignore=partial(_left_out, experiment.folder))
                if (owner := person().name) != experiment.owner:
                    data = read_json(unfinished / "experiment.json")
                    write_json(unfinished / "experiment.json", {**data, "owner": owner})
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return Experiment(folder)


def _left_out(whole: Path, folder: str, names: list[str]) -> list[str]:
    """What a copy leaves out of one folder: what jobs keep for themselves, and in a run its models and checkpoints."""
    in_run = Path(folder).parent == whole / "runs"
    heavy = ("model", "recovery", "adapter") if in_run else ()
    return [name for name in names if name in ("state.json", "job.log", *heavy) or name.startswith(".")]


def rename(item: Experiment | Run, name: str) -> Experiment | Run:
    """The experiment or run under its new name.

    Raises:
        ExperimentError: if the name cannot be used; for the baseline, runs of a study, which finds them by name, and
            read-only folders. JobError: while a job works on it.
    """
    item.check_writable()
    check_name(name)
    if isinstance(item, Run) and (item.is_baseline or "method" in item.settings):
        if item.is_baseline:
            raise ExperimentError(f"{BASELINE} is the original model. Rename the whole experiment instead.")
        raise ExperimentError(f"{item.name} is a run of a study, which finds it by its name. Duplicate it instead.")
    _check_idle(item)
    with job_lock(item), names_locked():
        folder = item.folder.parent / name if isinstance(item, Run) else check_new(name)
        if folder.exists():
            raise ExperimentError(f"{name} already exists. Choose another name, or delete {folder}.")
        with disk_errors(folder, 0):
            item.folder.rename(folder)
    record(f"rename to {name}", item.full_name, "done")
    return item.experiment.run(name) if isinstance(item, Run) else Experiment(folder)


def delete(item: Experiment | Run) -> None:
    """Delete an experiment or run with everything in it; other processes see all of it or nothing.

    Raises:
        ExperimentError: for the baseline and read-only folders. JobError: while a job works on it.
    """
    item.check_writable()
    if isinstance(item, Run) and item.is_baseline:
        raise ExperimentError(f"{BASELINE} is the original model and stays. Delete the whole experiment instead.")
    _check_idle(item)
    with job_lock(item), names_locked():
        gone = set_aside(item.folder)
    record("delete", item.full_name, "done")
    remove(gone)
    clean_up(gone.parent, older_than=60)


def _check_idle(item: Experiment | Run) -> None:
    """Raise JobError if a job works on the item, or on all runs of its experiment."""
    below: list[Experiment | Run] = [] if isinstance(item, Run) else [*item.runs()]
    for target in [item, *below]:
        if target.state().active:
            raise JobError(f"{target.name} has a job running. Cancel it first.")
    if isinstance(item, Run):
        check_idle_above(item)


def check_idle_above(run: Run) -> None:
    """Raise JobError if a job works on all runs of the run's experiment: it replaces and deletes their models."""
    state = run.experiment.state()
    if state.active and state.stage in ("study", "demo"):
        raise JobError(f"{run.experiment.name} has a job running ({state.stage}). Wait for it, or cancel it first.")
