"""Folders and JSON: names, damage, newer schemas, and states of jobs that are gone."""

import json

import pytest

from swm.errors import ExperimentError
from swm.plan import MergePlan, Window
from swm.search.kept_path import kept_path, save_path
from swm.search.threshold_path import ThresholdPath
from swm.settings import ExperimentSettings
from swm.workspace.experiments import Experiment, list_experiments
from swm.workspace.files import SCHEMA
from swm.workspace.names import check_name
from tests.reporting.test_compare import FACTS


@pytest.mark.parametrize("name", ["../up", "a/b", "A", "", "-a", "a" * 65, "a b", "é", "a\n", ".", "a\0"])
def test_names_that_could_leave_the_folder_are_refused(name):
    for use in (check_name, Experiment.open, lambda n: Experiment.create(n, ExperimentSettings("m"), FACTS)):
        with pytest.raises(ExperimentError, match="is not a valid name"):
            use(name)


def test_what_is_created_is_found_again(experiment):
    found = Experiment.open("study")
    assert (found.settings, found.layer_count) == (ExperimentSettings("some-model"), 6)
    assert "study" in [e.name for e in list_experiments()[0]]


def test_same_name_twice_is_refused(experiment):
    with pytest.raises(ExperimentError, match="Experiment study already exists"):
        Experiment.create("study", ExperimentSettings("other"), FACTS)


def test_unknown_experiment_and_run_are_told_with_what_there_is(experiment):
    with pytest.raises(ExperimentError, match=r"no experiment nope. Existing ones: .*study"):
        Experiment.open("nope")
    with pytest.raises(ExperimentError, match=r"no run nope in study. Existing ones: baseline"):
        experiment.run("nope")


def test_run_keeps_its_plan(experiment):
    plan = MergePlan(6, (Window(1, 3),), "mean")
    experiment.create_run("first", plan, 0.9, 0.93)
    run = experiment.run("first")
    run.remember(merge={})
    assert (run.plan, run.stage, run.settings["threshold"]) == (plan, "merged", 0.9)
    assert experiment.create_run("first", plan).plan == plan
    with pytest.raises(ExperimentError, match="Run first already exists with another plan"):
        experiment.create_run("first", MergePlan(6))
    with pytest.raises(ExperimentError, match="baseline is the original model"):
        experiment.create_run("baseline", plan)


def test_path_comes_back_as_it_was(experiment):
    path = ThresholdPath(6, "mean", 0.5)
    path.similarities[(Window(3, 4),), Window(1, 2)] = 0.75
    path.similarities[(), Window(3, 4)] = 0.875
    save_path(experiment, path)
    assert kept_path(experiment, "mean") == path
    assert kept_path(experiment, "rdsc") is None


def test_newer_schema_is_told(experiment):
    file = experiment.folder / "experiment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": SCHEMA + 1}))
    with pytest.raises(ExperimentError, match=r"has schema 2, but this release reads up to 1. Update"):
        Experiment.open("study")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": "1"}', '{"schema": 1}', '{"schema": 1, "x": 2}'])
def test_damaged_experiment_does_not_hide_the_others(experiment, content):
    Experiment.create("second", ExperimentSettings("m"), FACTS)
    (experiment.folder / "experiment.json").write_text(content)
    found, broken = list_experiments()
    assert "second" in [e.name for e in found]
    assert len(broken) == 1
    assert "experiment.json" in broken[0]


@pytest.mark.parametrize("groups", [[[0, 6]], [[-1]], [[]], [["1"]]])
def test_needed_layers_that_do_not_exist_are_damage(experiment, groups):
    file = experiment.folder / "experiment.json"
    data = json.loads(file.read_text())
    for needed, readable in (([[0, 5]], True), (groups, False)):
        file.write_text(json.dumps({**data, "model_facts": {**data["model_facts"], "needed_layers": needed}}))
        assert len(list_experiments()[1]) == (not readable)
    with pytest.raises(ExperimentError, match="needed_layers"):
        Experiment.open("study")


def test_damaged_run_does_not_hide_the_others(experiment):
    for name in ("a", "b"):
        experiment.create_run(name, MergePlan(6))
    (experiment.run("a").folder / "run.json").write_text('{"schema": 1}')
    found, broken = experiment.readable_runs()
    assert [run.name for run in found] == ["baseline", "b"]
    assert "run.json cannot be read" in broken[0]
    with pytest.raises(ExperimentError, match=r"run.json cannot be read"):
        _ = experiment.run("a").plan


def test_events_half_written_are_left_out(experiment):
    run = experiment.create_run("a", MergePlan(6))
    run.add_event(step=1, steps=3, loss=2.5)
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [event["loss"] for event in run.events()] == [2.5]
