"""Several stages in a row: one run from plan to scores, and the demo on the bundled model. What is done is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

from swm import stages
from swm.evaluate import TASKS
from swm.experiments import BASELINE, Experiment, Run, Settings, check_name, experiments_folder
from swm.jobs import Target
from swm.presets import RecoverySettings, preset_settings

log = logging.getLogger(__name__)

DEMO_MODEL = "smollm2-135m"
DEMO_RUN = "first"
DEMO_THRESHOLD = 0.9
DEMO_PATH_FROM = 0.88

Watched = Callable[[Target, str], AbstractContextManager[stages.Progress]]
"""Opens a stage of a target (a tracked job) and gives its progress function."""


def run_pipeline(run: Run, limit: int | None, recovery: RecoverySettings | None, watched: Watched) -> None:
    """Merge, evaluate (also the original), recover, evaluate again, time; `recovery` None leaves healing out."""
    baseline = run.experiment.run(BASELINE)
    if run.stage == "planned":
        log.info("merge: %s of %s layers left", run.plan.layers_left, run.plan.layer_count)
        with watched(run, "merge") as progress:
            stages.merge(run, progress)
    for each in (baseline, run):
        if not each.scores():
            log.info("evaluate: %s", "original" if each.is_baseline else f"{each.name} ({each.stage})")
            with watched(each, "evaluate") as progress:
                stages.evaluate(each, TASKS, limit, progress)
    if recovery and run.stage == "merged":
        log.info("recover: LoRA, %s steps of %s x %s tokens", recovery.steps, recovery.batch, recovery.length)
        with watched(run, "recover") as progress:
            stages.recover_run(run, recovery, progress)
        log.info("evaluate: %s (merged + LoRA)", run.name)
        with watched(run, "evaluate") as progress:
            stages.evaluate(run, TASKS, limit, progress)
    if not run.timing():
        log.info("time: %s in turn with the original", run.name)
        with watched(run, "time") as progress:
            stages.time_run(run, progress=progress)


def run_demo(name: str, limit: int | None, steps: int | None, watched: Watched) -> Experiment:
    """All of it on the bundled model."""
    if (experiments_folder() / check_name(name)).is_dir():
        experiment = Experiment.open(name)
    else:
        log.info("create: %s, LAMBADA 10 x 128 tokens", DEMO_MODEL)
        experiment = stages.create(name, Settings(DEMO_MODEL))
    if not experiment.similarity("cka"):
        log.info("measure: similarity of all layer pairs")
        with watched(experiment, "measure") as progress:
            stages.measure(experiment, "cka", progress)
    path = experiment.path("rdsc")
    if path is None or path.covered() < 0.999:
        log.info("search: every plan for thresholds from %s to 1", DEMO_PATH_FROM)
        with watched(experiment, "search") as progress:
            path = stages.search(experiment, "rdsc", DEMO_PATH_FROM, DEMO_THRESHOLD, progress)
    step = path.plan_at(DEMO_THRESHOLD)
    assert step is not None
    run = experiment.create_run(DEMO_RUN, step.plan, DEMO_THRESHOLD, step.similarity)
    run_pipeline(run, limit, preset_settings("quick", steps=steps), watched)
    return experiment
