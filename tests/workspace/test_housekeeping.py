"""Copies and new names: all results, no weights in a copy, and nothing of the original changes."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from swm.errors import ExperimentError, JobError
from swm.plan import MergePlan, Window
from swm.reporting.compare import compare
from swm.settings import ExperimentSettings
from swm.workspace.experiments import Experiment, list_experiments
from swm.workspace.housekeeping import copy_experiment, rename
from swm.workspace.state import State, this_process
from tests.reporting.test_compare import FACTS, scores


@pytest.fixture
def study():
    study = Experiment.create("study", ExperimentSettings("m"), FACTS)
    run = study.create_run("model", MergePlan(6, (Window(1, 3),)), 0.7)  # a run may be called like a folder in it
    run.save("scores", scores(50.0, 0.5, 0.6))
    study.run("baseline").save("scores", scores(20.0, 0.6, 0.8))
    study.write_state(study.state())
    for heavy in ("model", "recovery"):
        (run.folder / heavy).mkdir()
        (run.folder / heavy / "weights.safetensors").write_bytes(b"x" * 99)
    return study


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_copy_has_every_result_and_no_weights(study):
    before = contents(study.folder)
    copy = copy_experiment(study, "copy")
    assert contents(study.folder) == before
    left_out = {name for name in before if name.endswith(("state.json", ".lock", "weights.safetensors"))}
    assert contents(copy.folder) == {name: data for name, data in before.items() if name not in left_out}
    rows, copied = compare(study), compare(copy)
    assert [replace(row, experiment="study") for row in copied] == rows
    assert not copy.run("model").has_model


def test_a_shipped_example_becomes_ones_own(home):
    copy = copy_experiment(Experiment.open("example-demo"), "mine")
    assert not copy.read_only
    assert len(copy.runs()) == len(Experiment.open("example-demo").runs())
    copy.create_run("more", MergePlan(30, (Window(1, 3),)))


@pytest.mark.parametrize("name", ["study", "example-demo", "../up", "Big", ""])
def test_names_that_cannot_be_used_are_refused(study, name):
    with pytest.raises(ExperimentError):
        copy_experiment(study, name)
    assert "study" in [experiment.name for experiment in list_experiments()[0]]


def test_a_copy_that_fails_leaves_nothing(study, monkeypatch):
    whole = shutil.copytree

    def broken(source, target, *arguments, **options):
        whole(source, target, *arguments, **options)
        if Path(source) != study.folder:
            return target
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", broken)
    with pytest.raises(ExperimentError):
        copy_experiment(study, "copy")
    assert [folder.name for folder in study.folder.parent.iterdir()] == ["study"]


def test_renamed_it_is_the_same_under_another_name(study):
    before = contents(study.run("model").folder)
    run = rename(study.run("model"), "better")
    assert {name: data for name, data in contents(run.folder).items() if name != ".job.lock"} == before
    assert [run.name for run in study.runs()] == ["baseline", "better"]
    rows = compare(study)
    renamed = rename(study, "other")
    assert [experiment.name for experiment in list_experiments()[0] if not experiment.read_only] == ["other"]
    assert [replace(row, experiment="study") for row in compare(renamed)] == rows


@pytest.mark.parametrize(
    ("item", "name", "reason"),
    [
        ("model", "Big", "not a valid name"),
        ("model", "second", "already exists"),
        ("baseline", "mine", "original model"),
        ("of-a-study", "mine", "finds it by its name"),
        ("", "other", "already exists"),
        ("", "example-demo", "bundled example"),
    ],
)
def test_what_cannot_be_renamed_says_why_and_stays(study, item, name, reason):
    plan = MergePlan(6, (Window(1, 3),))
    study.create_run("second", plan)
    study.create_run("of-a-study", plan, method="sleb")
    Experiment.create("other", ExperimentSettings("m"), FACTS)
    before = contents(study.folder)
    with pytest.raises(ExperimentError, match=reason):
        rename(study.run(item) if item else study, name)
    assert {name: data for name, data in contents(study.folder).items() if not name.endswith(".lock")} == before


def test_nothing_is_renamed_while_a_job_works_on_it(study):
    now = time.time()
    study.run("model").write_state(State("merge", "running", started=now, heartbeat=now, **this_process()))
    for item in (study, study.run("model")):
        with pytest.raises(JobError):
            rename(item, "another")
