"""One run from plan to scores; finished steps are skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from swm.errors import ExperimentError, NoCacheError
from swm.evaluation.task_names import TASKS
from swm.evaluation.tasks import check_limit, check_request
from swm.jobs.tracking import Target
from swm.plan import MergePlan
from swm.progress import Progress, named
from swm.reporting.names import run_name
from swm.settings import RecoverySettings
from swm.stages.evaluate import evaluate_run
from swm.stages.merge import merge_run
from swm.stages.time import take_timing, time_run
from swm.workspace.changes import limit_changes, recovery_changes, refuse
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE, Run

log = logging.getLogger(__name__)


Watched = Callable[[Target, str], AbstractContextManager[Progress]]
"""Opens a job for a target and returns its progress function."""


def run_pipeline(
    run: Run,
    limit: int | None,
    recovery: RecoverySettings | None,
    progress: Progress,
    again: bool = False,
    entries: dict[str, Any] | None = None,
    score_merged: bool = True,
) -> None:
    """Merge, evaluate (also the original), recover, evaluate again, time; finished steps are skipped.

    A run of the same layers and parameters as a timed one takes its measurement.

    Args:
        recovery: None means no healing.
        again: start from merging, and replace the run's model and results.
        entries: of another plan to replace the run's, see `stages.merge`.
        score_merged: also evaluate the merged model before it is healed.

    Raises:
        ExperimentError: if the run has other settings and `again` is False.
    """
    baseline = run.experiment.run(BASELINE)
    check_request(TASKS, limit)
    if not again:
        _refuse_others(run, limit, recovery)
    _refuse_another_baseline(run.experiment, limit)
    if recovery and (again or run.stage != "recovered"):
        from swm.stages.recover import check_recovery  # peft and the Trainer take seconds to import

        plan = MergePlan.from_dict(entries["plan"]) if entries else run.plan
        check_recovery(run.experiment, recovery, plan)  # reports all errors before anything is replaced
    if bool(run.settings.get("unhealed")) != (recovery is None):
        run.remember(unhealed=recovery is None)  # so that the page offers the steps that were asked for
    if again or run.stage == "planned":
        merge_run(run, named("merge", progress), entries=entries)
    for target in (baseline, run) if score_merged or not recovery else (baseline,):
        if not target.is_scored(TASKS, limit):
            evaluate_run(target, TASKS, limit, named(f"evaluate {run_name(target)}", progress))
    if recovery and run.stage == "merged":
        from swm.stages.recover import recover_run

        recover_run(run, recovery, named("recover", progress))
        evaluate_run(run, TASKS, limit, named(f"evaluate {run_name(run)}", progress))
    if not take_timing(run):
        try:
            time_run(run, progress=named("time", progress))
        except NoCacheError as error:  # everything else is finished
            log.warning("%s", error)


def is_finished(run: Run, limit: int | None, recovery: RecoverySettings | None) -> bool:
    """Whether `run_pipeline` with these settings has nothing left to do.

    Raises:
        ExperimentError: if the run has other settings.
    """
    check_limit(limit)
    _refuse_others(run, limit, recovery)
    _refuse_another_baseline(run.experiment, limit)
    done = run.stage == ("recovered" if recovery else "merged") and run.timing() is not None
    return done and all(target.is_scored(TASKS, limit) for target in (run.experiment.run(BASELINE), run))


def _refuse_others(run: Run, limit: int | None, recovery: RecoverySettings | None) -> None:
    refuse(run, [*recovery_changes(run, recovery), *limit_changes(run, limit)])


def _refuse_another_baseline(experiment: Experiment, limit: int | None) -> None:
    """Raise ExperimentError if this would replace the original's scores, which all runs are compared with."""
    baseline = experiment.run(BASELINE)
    scores = baseline.scores() or {"tasks": {}}
    if limit_changes(baseline, limit) and set(TASKS) <= set(scores["tasks"]):
        old_limit = scores["limit"] or "none"
        raise ExperimentError(
            f"The original was scored with --limit {old_limit}, this run with --limit {limit or 'none'}: their scores "
            f"are not comparable. Pass --limit {old_limit}, or evaluate the original first: "
            f"python -m swm evaluate {experiment.name} {BASELINE} --limit {limit or 'none'}"
        )
