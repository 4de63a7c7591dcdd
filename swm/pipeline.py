"""Several stages in a row: one run from plan to scores, and the demo on the bundled model. What is done is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from swm import planning, stages
from swm.compare import run_name
from swm.errors import ExperimentError, NoCacheError, TextError
from swm.evaluate import check_limit, check_request
from swm.experiments import BASELINE, Experiment, Run, Settings
from swm.jobs import Target
from swm.metrics import TASKS
from swm.names import check_name, experiments_folder
from swm.presets import RecoverySettings, preset_settings
from swm.recipe import Recipe
from swm.reruns import limit_changes, recovery_changes, refuse
from swm.texts import text_hash

log = logging.getLogger(__name__)

DEMO_MODEL = "smollm2-135m"
DEMO_RUN = "first"
DEMO_THRESHOLD = 0.9
DEMO_PATH_FROM = 0.88

Watched = Callable[[Target, str], AbstractContextManager[stages.Progress]]
"""Opens a job of a target and gives its progress function."""


def run_pipeline(
    run: Run,
    limit: int | None,
    recovery: RecoverySettings | None,
    progress: stages.Progress,
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
        stages.check_recovery(run.experiment, recovery)  # all of it before anything is replaced
    if again or run.stage == "planned":
        stages.merge(run, _named("merge", progress), entries=entries)
    for each in (baseline, run):
        if not _is_evaluated(each, limit):
            stages.evaluate(each, TASKS, limit, _named(f"evaluate {run_name(each.name, each.stage)}", progress))
    if recovery and run.stage == "merged":
        stages.recover_run(run, recovery, _named("recover", progress))
        stages.evaluate(run, TASKS, limit, _named(f"evaluate {run_name(run.name, run.stage)}", progress))
    if not run.timing():
        try:
            stages.time_run(run, progress=_named("time", progress))
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
    return done and all(_is_evaluated(each, limit) for each in (run.experiment.run(BASELINE), run))


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


def run_demo(name: str, limit: int | None, steps: int | None, watched: Watched) -> Experiment:
    """All of it on the bundled model."""
    if (experiments_folder() / check_name(name) / "experiment.json").is_file():
        experiment = Experiment.open(name)
        if experiment.settings != Settings(DEMO_MODEL):
            raise ExperimentError(f"There is an experiment {name} with other settings. Choose another --name.")
    else:
        log.info("create: %s, LAMBADA 10 x 128 tokens", DEMO_MODEL)
        experiment = stages.create(name, Settings(DEMO_MODEL))
    with watched(experiment, "demo") as progress:
        if not experiment.similarity("cka"):
            stages.measure(experiment, "cka", _named("measure", progress))
        path = experiment.path("rdsc")
        if path is None or path.covered() < 0.999:
            path = planning.search(experiment, "rdsc", DEMO_PATH_FROM, DEMO_THRESHOLD, _named("search", progress))
    step = path.plan_at(DEMO_THRESHOLD)
    assert step is not None
    run = experiment.create_run(DEMO_RUN, step.plan, DEMO_THRESHOLD, step.similarity)
    with watched(run, "run") as progress:
        run_pipeline(run, limit, preset_settings("quick", steps=steps), progress)
    return experiment


def repeat(recipe: Recipe, name: str | None, watched: Watched) -> Run:
    """The run of a recipe, in a new experiment; one that is there already with the same settings is gone on with."""
    name = check_name(name or recipe.experiment)
    if (experiments_folder() / name / "experiment.json").is_file():
        experiment = Experiment.open(name)
        if experiment.settings != recipe.settings:
            raise ExperimentError(f"There is an experiment {name} with other settings. Choose another --name.")
    else:
        if recipe.text_hash and text_hash(recipe.settings.texts) != recipe.text_hash:
            raise TextError(
                f"The calibration text {recipe.settings.texts} is not the one that the recipe was made with, so "
                "the run cannot be reproduced. Restore the text."
            )
        experiment = stages.create(name, recipe.settings)
    run = experiment.create_run(recipe.run, recipe.plan, origin=recipe.origin)
    with watched(run, "run") as progress:
        run_pipeline(run, recipe.limit, recipe.recovery, progress)
    return run


def _named(stage: str, progress: stages.Progress) -> stages.Progress:
    """Progress of one stage of several, with its name in front; the log tells when it begins."""
    log.info("%s", stage)
    return lambda done, total, text: progress(done, total, f"{stage}: {text}")


def _is_evaluated(run: Run, limit: int | None) -> bool:
    """Whether it has scores of all tasks on as many documents: else they could not be compared."""
    scores = run.scores()
    return scores is not None and scores["limit"] == limit and set(TASKS) <= set(scores["tasks"])
