"""The demo: the whole story on the bundled model, with small settings.

The original; the paper's search at two thresholds, which leave 28 and 24 layers; the plan of `best` with 24
layers; all healed in the same way, and so is the original (the control).
"""

from __future__ import annotations

from swm.disk.names import check_name, experiments_folder
from swm.errors import ExperimentError
from swm.plan import MergePlan
from swm.progress import Progress, named
from swm.search.kept_path import kept_path
from swm.settings import SKIPPED_TOKENS, ExperimentSettings, SearchOptions, preset_settings
from swm.similarity.measure import Measure
from swm.stages.control import make_control
from swm.stages.create import create_experiment
from swm.stages.measure import measure_experiment
from swm.stages.plan import plan_for
from swm.stages.plan_by import plan_by
from swm.stages.run import Watched, log, run_pipeline
from swm.stages.search import search_path
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run

DEMO_MODEL = "smollm2-135m"
DEMO_WALKS = {"walk-28": 0.94, "walk-24": 0.76}  # the threshold of each run of the paper's search
DEMO_LAYERS = 24  # that `best` leaves: a fifth fewer
DEMO_PATH_FROM = 0.94  # the slider covers this up to 1; `swm search demo` computes the rest


def run_demo(name: str, limit: int | None, steps: int | None, watched: Watched) -> Experiment:
    """The demo experiment, with its runs through the whole pipeline; finished steps are skipped.

    Args:
        limit: documents per task, None for all. steps: of LoRA training, None for the preset's.
    """
    experiment = _experiment(name)
    with watched(experiment, "demo") as progress:
        measure = Measure(skip_tokens=SKIPPED_TOKENS)
        if not experiment.similarity(measure.name):
            measure_experiment(experiment, measure, named("measure", progress))
        path = kept_path(experiment, "rdsc")
        if path is None or path.covered() < 0.999:
            search_path(experiment, "rdsc", DEMO_PATH_FROM, progress=named("search", progress), answers=True)
        runs = _planned_runs(experiment, progress)
    recovery = preset_settings("quick", steps=steps)
    for run in runs:
        with watched(run, "run") as progress:
            run_pipeline(run, limit, recovery, progress, score_merged=False)
    make_control(runs[-1], watched)
    return experiment


def _experiment(name: str) -> Experiment:
    if (experiments_folder() / check_name(name) / "experiment.json").is_file():
        experiment = Experiment.open(name)
        if experiment.settings != ExperimentSettings(DEMO_MODEL):
            raise ExperimentError(f"Experiment {name} already exists with other settings. Choose another --name.")
        return experiment
    log.info("create: %s, LAMBADA 10 x 128 tokens", DEMO_MODEL)
    return create_experiment(name, ExperimentSettings(DEMO_MODEL))


def _planned_runs(experiment: Experiment, progress: Progress) -> list[Run]:
    """The runs of the demo, the best one last, because Home leads with the newest."""
    runs = []
    for name, threshold in DEMO_WALKS.items():
        step = plan_for(experiment, threshold=threshold, progress=named("search", progress))
        runs.append(experiment.create_run(name, step.plan, threshold, step.similarity))
    # `best` needs minutes to find this plan. On this model, the angular block finds the same layers in seconds.
    data = plan_by(experiment, "angular", DEMO_LAYERS, named("plan", progress), how=SearchOptions(rule="fit"))
    origin = experiment.origin_of(MergePlan.from_dict(data), method="angular")
    return [
        *runs,
        experiment.create_run("best-24", MergePlan.from_dict(data), similarity=data["similarity"], origin=origin),
    ]
