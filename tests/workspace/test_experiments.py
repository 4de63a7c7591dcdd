"""Folders and JSON: names, damage, newer schemas, and states of jobs that are gone."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from swm.disk.files import SCHEMA, read_json, write_json
from swm.disk.names import check_name, is_shipped
from swm.errors import ExperimentError
from swm.jobs.child import active_targets
from swm.jobs.sweep import sweeps
from swm.plan import MergePlan, Window
from swm.reporting.compare import compare
from swm.search.kept_path import kept_path, save_path
from swm.search.threshold_path import ThresholdPath
from swm.settings import ExperimentSettings
from swm.workspace.experiments import Experiment, list_experiments
from tests.reporting.test_compare import FACTS

ROOT = Path(__file__).parents[2]


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


def test_an_unknown_rule_or_planner_is_not_called_damage(experiment):
    """As when a plugin is not installed: no advice to delete what is intact."""
    run = experiment.create_run("a", MergePlan(6, (Window(1, 2),)))
    data = read_json(run.folder / "run.json")
    write_json(run.folder / "run.json", {**data, "plan": {**data["plan"], "rule": "sumall"}})
    write_json(experiment.folder / "path" / "sumall.json", {"rule": "sumall"})
    write_json(experiment.folder / "plans" / "lowest-3.json", {"planner": "lowest"})
    [message] = experiment.readable_runs()[1]
    assert "'sumall' is not a merge rule" in message
    assert "Install the plugin" in message
    assert "damaged" not in message
    assert "elete" not in message
    assert (experiment.rules_searched(), experiment.plans_found()) == ([], [])


COMES_AND_GOES = """
import sys
from swm.jobs.sweep import Sweep
from swm.plan import MergePlan, Window
from swm.workspace.experiments import Experiment
from swm.workspace.housekeeping import copy_experiment, delete
study, n = Experiment.open("study"), 0
while True:
    copy = copy_experiment(study, "copy")
    run = copy.create_run("b", MergePlan(6, (Window(0, 1),)))
    run.add_event(step=1, steps=2)
    sweep = Sweep.create({"name": "s", "models": ["m"], "plans": [{"layers": 3}]})
    (sweep.folder / "sweep.json").unlink()
    delete(run)
    delete(copy)
    n += 1
    print(n, flush=True)
"""


def test_what_another_process_deletes_between_listing_and_reading_is_left_out(experiment):
    from pages.shared.tables import runs_table

    experiment.create_run("a", MergePlan(6, (Window(1, 2),)))
    other = subprocess.Popen([sys.executable, "-c", COMES_AND_GOES], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "1\n"
        for _ in range(150):
            experiments, broken = list_experiments()
            assert broken == sweeps()[1] == []
            assert set(runs_table(experiments)["run"]) >= {"a"}
            for each in experiments:
                if not is_shipped(each.folder):
                    assert each.readable_runs()[1] == []
                    each.results_changed(), each.log_tail(), [run.state() for run in each.runs()]
                    with contextlib.suppress(ExperimentError):  # deleted as a whole: said so
                        assert compare(each)
            active_targets(experiments)
        assert other.poll() is None
    finally:
        other.kill()
        rounds = len(other.communicate()[0].splitlines())
    assert rounds > 5  # so both were at work
