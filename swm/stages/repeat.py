"""Reproduces a run from its recipe."""

from __future__ import annotations

from swm.disk.names import check_name, experiments_folder
from swm.errors import ExperimentError, TextError
from swm.stages.create import create_experiment
from swm.stages.run import Watched, run_pipeline
from swm.texts.documents import text_hash
from swm.workspace.experiments import Experiment
from swm.workspace.recipe import Recipe
from swm.workspace.runs import Run


def repeat_recipe(recipe: Recipe, name: str | None, watched: Watched) -> Run:
    """The run of a recipe, in a new experiment; an existing one with the same settings is resumed."""
    name = check_name(name or recipe.experiment)
    if (experiments_folder() / name / "experiment.json").is_file():
        experiment = Experiment.open(name)
        if experiment.settings != recipe.settings:
            raise ExperimentError(f"Experiment {name} already exists with other settings. Choose another --name.")
    else:
        if recipe.text_hash and text_hash(recipe.settings.texts) != recipe.text_hash:
            raise TextError(
                f"The calibration text {recipe.settings.texts} differs from the recipe's, so the run cannot be "
                "reproduced. Restore the text."
            )
        experiment = create_experiment(name, recipe.settings)
    run = experiment.create_run(recipe.run, recipe.plan, origin=recipe.origin)
    with watched(run, "run") as progress:
        run_pipeline(run, recipe.limit, recipe.recovery, progress)
    return run
