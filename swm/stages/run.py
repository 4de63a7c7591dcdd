"""One run from plan to scores; what is done already is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from swm.errors import ExperimentError, NoCacheError
from swm.evaluation.task_names import TASKS
from swm.evaluation.tasks import check_limit, check_request
from swm.jobs.tracking import Target
from swm.progress import Progress, named
from swm.reporting.compare import run_name
from swm.settings import RecoverySettings
from swm.stages.evaluate import evaluate_run
from swm.stages.merge import merge_run
from swm.stages.recover import check_recovery, recover_run
from swm.stages.time import time_run
from swm.workspace.changes import limit_changes, recovery_changes, refuse
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE, Run

log = logging.getLogger(__name__)


Watched = Callable[[Target, str], AbstractContextManager[Progress]]
"""Opens a job of a target and gives its progress function."""


def run_pipeline(
    run: Run,
    limit: int | None,
    recovery: RecoverySettings | None,
    progress: Progress,
    again: bool = False,
    entries: dict[str, Any] | None = None,
) -> None:
    """Merge, evaluate (also the original), recover, evaluate again, time; what is done already is left out.

    Args:
        recovery: None leaves healing out.
        again: begin with merging, and replace what the run has.
        entries: of another plan to replace the run's, see `stages.merge`.

    Raises:
        ExperimentError: if the run has other settings and `again` is not said.
    """
    baseline = run.experiment.run(BASELINE)
    check_request(TASKS, limit)
    if not again:
        _refuse_others(run, limit, recovery)
    _refuse_another_baseline(run.experiment, limit)
    if recovery and (again or run.stage != "recovered"):
        check_recovery(run.experiment, recovery)  # all of it before anything is replaced
    if again or run.stage == "planned":
        merge_run(run, named("merge", progress), entries=entries)
    for each in (baseline, run):
        if not each.is_scored(TASKS, limit):
            evaluate_run(each, TASKS, limit, named(f"evaluate {run_name(each.name, each.stage)}", progress))
    if recovery and run.stage == "merged":
        recover_run(run, recovery, named("recover", progress))
        evaluate_run(run, TASKS, limit, named(f"evaluate {run_name(run.name, run.stage)}", progress))
    if not run.timing():
        try:
            time_run(run, progress=named("time", progress))
        except NoCacheError as error:  # all else is done
            log.warning("%s", error)


def is_finished(run: Run, limit: int | None, recovery: RecoverySettings | None) -> bool:
    """Whether nothing is left to do of `run_pipeline` with these settings.

    Raises:
        ExperimentError: if the run has other settings.
    """
    check_limit(limit)
    _refuse_others(run, limit, recovery)
    _refuse_another_baseline(run.experiment, limit)
    done = run.stage == ("recovered" if recovery else "merged") and run.timing() is not None
    return done and all(each.is_scored(TASKS, limit) for each in (run.experiment.run(BASELINE), run))


def _refuse_others(run: Run, limit: int | None, recovery: RecoverySettings | None) -> None:
    refuse(run, [*recovery_changes(run, recovery), *limit_changes(run, limit)])


def _refuse_another_baseline(experiment: Experiment, limit: int | None) -> None:
    """Raise ExperimentError if the original's scores, with which all runs are compared, would be replaced."""
    baseline = experiment.run(BASELINE)
    scores = baseline.scores() or {"tasks": {}}
    if limit_changes(baseline, limit) and set(TASKS) <= set(scores["tasks"]):
        had = scores["limit"] or "none"
        raise ExperimentError(
            f"The original is scored with --limit {had}, and this run with {limit or 'none'}: they could "
            f"not be compared. Pass --limit {had}, or evaluate the original first: "
            f"python -m swm evaluate {experiment.name} {BASELINE} --limit {limit or 'none'}"
        )
