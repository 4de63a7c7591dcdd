"""Whose things are whose: every way to change something, tried by its owner, another person, an admin and nobody."""

import json

import pytest

from swm.errors import ExperimentError, JobError
from swm.jobs.child import active_targets, cancel, start
from swm.jobs.sweep import Sweep
from swm.jobs.tracking import tracked
from swm.plan import MergePlan, Window
from swm.settings import ExperimentSettings
from swm.workspace import people
from swm.workspace.experiments import Experiment
from swm.workspace.housekeeping import copy_experiment, delete, rename
from swm.workspace.people import Person, audit_file, entries
from swm.workspace.state import State, this_process
from tests.reporting.test_compare import FACTS

ANN, BOB, ADMIN, NOBODY = (
    Person("ann@example.org"),
    Person("bob@example.org"),
    Person("eve@example.org", True),
    Person(),
)
GRID = {"name": "sweep", "models": "m", "texts": "lambada", "plans": [{"planner": "angular", "layers": 4}]}


@pytest.fixture
def acting(monkeypatch):
    """acting(person): from now on that person acts."""
    monkeypatch.setattr(people, "_ask", people._ask)
    return lambda who: people.identify_by(lambda: who)


@pytest.fixture
def anns(acting):
    """An experiment of Ann's with a run, as anybody reads it from disk."""
    acting(ANN)
    experiment = Experiment.create("anns", ExperimentSettings("some-model"), {**FACTS, "dtype": "float32", "width": 8})
    experiment.create_run("a", MergePlan(6, (Window(1, 3),)))
    Sweep.create(GRID)
    return experiment


CHANGES = {
    "start a job": lambda e: start(e, "measure", ["models"]),
    "start a job of a run": lambda e: start(e.run("a"), "merge", ["models"]),
    "run a stage": lambda e: tracked(e.run("a"), "merge").__enter__(),
    "cancel a job": lambda e: cancel(e),
    "create a run": lambda e: e.create_run("b", MergePlan(6, (Window(1, 2),))),
    "rename": lambda e: rename(e, "other"),
    "rename a run": lambda e: rename(e.run("a"), "other"),
    "delete": lambda e: delete(e),
    "delete a run": lambda e: delete(e.run("a")),
    "save a map": lambda e: e.save_similarity("cka", {}),
    "save a plan": lambda e: e.save_planned("best", 4, {}),
    "save settings": lambda e: e.run("a").remember(x=1),
    "save scores": lambda e: e.run("a").save("scores", {}),
    "start a sweep": lambda e: start(Sweep("sweep"), "sweep", ["models"]),
    "replace a sweep": lambda e: Sweep.create(GRID),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_person_reads_and_changes_nothing(change, anns, acting):
    acting(BOB)
    read = Experiment.open("anns")
    assert read.read_only
    assert read.run("a").read_only
    assert [run.name for run in read.runs()] == ["baseline", "a"]
    before = {file: file.read_bytes() for file in anns.folder.rglob("*.json")}
    with pytest.raises((ExperimentError, JobError), match=r"belongs to ann@example\.org"):
        CHANGES[change](read)
    assert {file: file.read_bytes() for file in anns.folder.rglob("*.json")} == before


@pytest.mark.parametrize(
    "who", [ANN, Person("Ann@Example.org"), ADMIN, NOBODY], ids=["owner", "case", "admin", "nobody"]
)
def test_the_owner_an_admin_and_a_machine_without_login_change_it(who, anns, acting):
    acting(who)
    mine = Experiment.open("anns")
    assert not mine.read_only
    mine.create_run("b", MergePlan(6, (Window(1, 2),)))
    rename(mine.run("b"), "c")
    delete(mine.run("c"))
    assert Sweep.create(GRID).owner == "ann@example.org"  # an admin does not take it over
    assert Experiment.open("anns").owner == "ann@example.org"
    assert [entry["what"] for entry in entries("anns")] == ["delete", "rename to c", "create"]
    assert {entry["who"] for entry in entries("anns")} != {""}


def test_a_copy_belongs_to_who_made_it(anns, acting):
    acting(BOB)
    copy = copy_experiment(Experiment.open("anns"), "bobs")
    assert (copy.owner, copy.read_only) == ("bob@example.org", False)
    assert Experiment.open("bobs").settings == anns.settings
    acting(ANN)
    assert Experiment.open("bobs").read_only
    acting(NOBODY)
    assert copy_experiment(anns, "everybodys").owner == ""
    acting(BOB)
    assert not Experiment.open("everybodys").read_only


def test_a_job_acts_for_who_started_it(anns, acting, monkeypatch):
    """What the child process is told: it may do what the person may, and what it creates is theirs."""
    acting(BOB)
    environment = people.child_environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    people.identify_by(people._of_environment)
    assert people.person() == BOB
    assert Experiment.open("anns").read_only
    acting(ADMIN)
    for name, value in people.child_environment().items():
        monkeypatch.setenv(name, value)
    people.identify_by(people._of_environment)
    assert people.person() == ADMIN
    assert not Experiment.open("anns").read_only


def test_everybody_sees_whose_jobs_run(anns, acting):
    anns.write_state(State("measure", "running", **this_process()))
    acting(BOB)
    assert [target.full_name for target, _ in active_targets([Experiment.open("anns")])] == ["anns"]


@pytest.mark.parametrize(("fails", "outcome"), [(None, "done"), (ExperimentError("broken"), "failed")])
def test_each_job_leaves_who_what_when_and_how_it_ended(fails, outcome, anns):
    try:
        with tracked(anns.run("a"), "merge", ["merge", "anns", "a"], device=False):
            if fails:
                raise fails
    except ExperimentError:
        pass
    created, *lines = (json.loads(line) for line in audit_file().read_text().splitlines())
    assert (created["what"], created["who"]) == ("create", "ann@example.org")
    assert [(line["who"], line["what"], line["target"], line["outcome"]) for line in lines] == [
        ("ann@example.org", "merge", "anns / a", "started"),
        ("ann@example.org", "merge", "anns / a", outcome),
    ]
    assert lines[0]["command"] == ["merge", "anns", "a"]
    assert lines[0]["time"].endswith("+00:00")
    assert oct(audit_file().stat().st_mode)[-3:] == "600"


def test_damaged_lines_and_those_of_others_are_left_out(anns, home):
    with tracked(anns, "measure", device=False):
        pass
    with audit_file().open("a") as file:
        file.write(
            '{"target": "anns", \n[]\n"anns"\n{"target": "anns-2", "what": "x"}\n{"target": "anns", "what": "y"}\n'
        )
    assert [entry["what"] for entry in entries("anns")] == ["y", "measure", "measure", "create"]
    assert entries("nothing") == []


def test_without_a_login_nothing_is_written(acting, home):
    acting(NOBODY)
    experiment = Experiment.create("e", ExperimentSettings("some-model"), {**FACTS, "dtype": "float32", "width": 8})
    with tracked(experiment, "measure", device=False):
        pass
    assert not audit_file().exists()
    assert entries("e") == []
