"""What was computed from other text, or by a search that could be wrong, is told and never mixed in."""

import json

import pytest

from swm.search.kept_path import kept_path
from swm.workspace.experiments import Experiment


@pytest.fixture
def experiment(swm, model_folder, text_file, home):
    assert swm("create", "e", "--model", model_folder, "--texts", text_file, "--count", 4, "--length", 16)[0] == 0
    return Experiment.open("e")


def rewrite(file, **changes):
    data = json.loads(file.read_text())
    data.update(changes)
    file.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


def test_a_path_of_a_search_that_could_be_wrong_is_computed_again_and_says_so(swm, experiment, caplog):
    assert swm("search", "e", "--from", "0.6", "--exact")[0] == 0
    right = json.loads(swm("plan", "e", "--threshold", "0.8", "--json")[1])
    file = experiment.folder / "path" / "rdsc.json"
    wrong = json.loads(file.read_text())["similarities"]
    for row in wrong:
        row["similarity"] = 0.9999  # what an earlier release might have found
    rewrite(file, similarities=wrong, version=None)
    assert kept_path(Experiment.open("e"), "rdsc") is None
    caplog.clear()
    again = json.loads(swm("plan", "e", "--threshold", "0.8", "--json")[1])
    assert again["windows"] == right["windows"]
    told = [record.message for record in caplog.records if "Recomputing" in record.message]
    assert len(told) == 1
    assert "an earlier release could mix up the scores of windows" in told[0]


COMMANDS = (("measure",), ("search",), ("plan", "--threshold", "0.9"), ("merge", "r", "--windows", "1-2"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_calibration_file_that_changed_is_refused(swm, experiment, text_file, command):
    text_file.write_text(text_file.read_text() + "\n\nOne more paragraph, about nothing that stood there before.")
    code, _, told = swm(command[0], "e", *command[1:])
    assert code == 1
    assert f"The calibration text {text_file} has changed since e was created" in told
    assert "Restore the text, or create a new experiment" in told


def test_what_is_computed_keeps_the_hash_of_its_text(swm, experiment):
    found = ("plan", "e", "--planner", "shortgpt", "--layers", 3)
    for command in (("measure", "e"), ("search", "e", "--from", "0.9"), found):
        assert swm(*command)[0] == 0
    files = [experiment.folder / name for name in ("similarity/cka.json", "path/rdsc.json", "plans/shortgpt-3.json")]
    assert {json.loads(file.read_text())["text_hash"] for file in files} == {experiment.text_hash} != {""}


def test_experiments_of_the_first_release_open_and_go_on(swm, experiment, text_file):
    rewrite(experiment.folder / "experiment.json", text_hash=None)
    text_file.write_text(text_file.read_text() + "\n\nOne more paragraph.")
    assert swm("plan", "e", "--threshold", "0.9")[0] == 0


def test_a_plan_that_is_known_already_is_told_of_the_change_too(swm, experiment, text_file):
    assert swm("plan", "e", "--threshold", "0.9")[0] == 0
    text_file.write_text(text_file.read_text() + "\n\nOne more paragraph.")
    code, _, told = swm("plan", "e", "--threshold", "0.9")
    assert (code, "has changed since e was created" in told) == (1, True)
