"""Tests of swm.reporting.commands."""

import shlex
from dataclasses import asdict

import pytest

from swm.cli.options import build_parser
from swm.plan import MergePlan
from swm.reporting.commands import card_commands, commands
from swm.settings import preset_settings
from swm.workspace.controls import control_of
from swm.workspace.experiments import Experiment


def test_commands_are_ones_that_the_command_line_takes(experiment):
    experiment.run("first").remember(merge={"parameters": 800}, recovery=asdict(preset_settings("quick", steps=80)))
    lines = commands(experiment)
    for line in lines:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "swm"]
        build_parser().parse_args(words[3:])
    assert "python -m swm merge study first --windows 1-3 --rule mean" in lines


@pytest.mark.parametrize("method", [None, "control"])
def test_a_studys_control_is_listed_as_it_was_made(experiment, method):
    healed = {"merge": {"parameters": 800}, "recovery": asdict(preset_settings("quick", steps=80))}
    experiment.run("first").remember(**healed)
    experiment.create_run("control-4", MergePlan(experiment.layer_count), None, 1.0, method).remember(**healed)
    lines = commands(experiment)
    assert ("python -m swm control study first" in lines) == (method is None)
    assert bool([line for line in lines if " recover study control-4 " in line]) == (method is not None)


def test_every_changed_recovery_setting_is_in_the_command(experiment):
    from dataclasses import asdict

    from swm.settings import preset_settings

    settings = preset_settings("quick", steps=7, rank=3, learning_rate=0.001, loss_on="response")
    experiment.run("first").remember(recovery=asdict(settings))
    line = next(line for line in commands(experiment) if " recover " in line)
    options = build_parser().parse_args(shlex.split(line)[3:])
    from swm.cli.make import recovery_settings

    assert recovery_settings(options) == settings


def test_a_control_is_made_by_one_command_for_all_runs_that_it_serves():
    demo = Experiment.open("example-demo")
    control = [line for line in commands(demo) if " control " in line]
    assert len(control) == 1
    run = demo.run(build_parser().parse_args(shlex.split(control[0])[3:]).run)
    assert control_of(run).name == "control"
    assert not [line for line in commands(demo) if "merge my-demo control" in line]
    assert card_commands(demo.run("walk-24"))[-1] == "python -m swm control my-demo walk-24"
    assert not [line for line in card_commands(demo.run("control")) if " control my-demo" in line]
