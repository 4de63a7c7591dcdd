"""The demo: the whole pipeline on the bundled model."""

from __future__ import annotations

from swm.errors import ExperimentError
from swm.progress import named
from swm.search.kept_path import kept_path
from swm.settings import ExperimentSettings, preset_settings
from swm.stages.create import create_experiment
from swm.stages.measure import measure_experiment
from swm.stages.run import Watched, log, run_pipeline
from swm.stages.search import search_path
from swm.workspace.experiments import Experiment
from swm.workspace.names import check_name, experiments_folder

DEMO_MODEL = "smollm2-135m"


DEMO_RUN = "first"


DEMO_THRESHOLD = 0.9


DEMO_PATH_FROM = 0.88


def run_demo(name: str, limit: int | None, steps: int | None, watched: Watched) -> Experiment:
    """The demo experiment, with its run through the whole pipeline; finished steps are skipped."""
    if (experiments_folder() / check_name(name) / "experiment.json").is_file():
        experiment = Experiment.open(name)
        if experiment.settings != ExperimentSettings(DEMO_MODEL):
            raise ExperimentError(f"Experiment {name} already exists with other settings. Choose another --name.")
    else:
        log.info("create: %s, LAMBADA 10 x 128 tokens", DEMO_MODEL)
        experiment = create_experiment(name, ExperimentSettings(DEMO_MODEL))
    with watched(experiment, "demo") as progress:
        if not experiment.similarity("cka"):
            measure_experiment(experiment, "cka", named("measure", progress))
        path = kept_path(experiment, "rdsc")
        if path is None or path.covered() < 0.999:
            path = search_path(experiment, "rdsc", DEMO_PATH_FROM, DEMO_THRESHOLD, named("search", progress))
    step = path.plan_at(DEMO_THRESHOLD)
    assert step is not None
    run = experiment.create_run(DEMO_RUN, step.plan, DEMO_THRESHOLD, step.similarity)
    with watched(run, "run") as progress:
        run_pipeline(run, limit, preset_settings("quick", steps=steps), progress)
    return experiment
