"""A recipe gives the run back; mergekit's slices keep the layers that the plan keeps."""

import json
from dataclasses import asdict

import pytest
import yaml

from swm.errors import PlanError, SettingsError
from swm.plan import MergePlan, Window
from swm.reporting.formats.mergekit import mergekit_yaml
from swm.reporting.formats.recipe import recipe_json
from swm.settings import ExperimentSettings, preset_settings
from swm.workspace.experiments import Experiment
from swm.workspace.recipe import parsed_recipe, read_recipe, recipe_of
from tests.reporting.test_compare import FACTS, scores

PLAN = MergePlan(6, (Window(0, 1), Window(3, 5)), "keep_first")


@pytest.fixture
def run():
    experiment = Experiment.create("study", ExperimentSettings("org/some-model", seed=7), FACTS)
    run = experiment.create_run("first", PLAN)
    run.remember(recovery={**asdict(preset_settings("quick", steps=3)), "trained_parameters": 5, "seconds": 1.0})
    run.save("scores", scores(20.0, 0.6, 0.8))
    return run


def test_a_recipe_comes_back_from_its_file_as_it_was(run, tmp_path):
    (tmp_path / "recipe.json").write_text(recipe_json(run))
    recipe = read_recipe(tmp_path / "recipe.json")
    assert recipe == recipe_of(run)
    assert (recipe.plan, recipe.limit, recipe.settings.seed) == (PLAN, 40, 7)
    assert recipe.recovery == preset_settings("quick", steps=3)


@pytest.mark.parametrize(
    "change", [{"plan": None}, {"settings": {"x": 1}}, {"limit": "many"}, {"recovery": {"steps": 0}}]
)
def test_what_is_no_recipe_is_told(run, change):
    data = {**json.loads(recipe_json(run)), **change}
    with pytest.raises(SettingsError, match=r"not a recipe|out of range"):
        parsed_recipe(data)


def test_mergekit_slices_keep_what_the_plan_keeps(run):
    # 0-1 becomes 0, 2 stays, 3-5 becomes 3: layers 0, 2, 3; the end of a range is left out.
    data = yaml.safe_load(mergekit_yaml(run.experiment, PLAN))
    assert [s["sources"][0]["layer_range"] for s in data["slices"]] == [[0, 1], [2, 4]]
    assert data["merge_method"] == "passthrough"
    last = yaml.safe_load(mergekit_yaml(run.experiment, MergePlan(6, PLAN.windows, "keep_last")))
    assert [s["sources"][0]["layer_range"] for s in last["slices"]] == [[1, 3], [5, 6]]
    with pytest.raises(PlanError, match="only keep or drop layers"):
        mergekit_yaml(run.experiment, MergePlan(6, PLAN.windows, "mean"))
