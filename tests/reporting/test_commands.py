"""Tests of swm.reporting.commands."""

import shlex
from dataclasses import asdict

from swm.cli.options import build_parser
from swm.reporting.commands import commands
from swm.settings import preset_settings


def test_commands_are_ones_that_the_command_line_takes(experiment):
    experiment.run("first").remember(merge={"parameters": 800}, recovery=asdict(preset_settings("quick", steps=80)))
    lines = commands(experiment)
    for line in lines:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "swm"]
        build_parser().parse_args(words[3:])
    assert "python -m swm merge study first --windows 1-3 --rule mean" in lines


def test_every_changed_recovery_setting_is_in_the_command(experiment):
    from dataclasses import asdict

    from swm.settings import preset_settings

    settings = preset_settings("quick", steps=7, rank=3, learning_rate=0.001, loss_on="response")
    experiment.run("first").remember(recovery=asdict(settings))
    line = next(line for line in commands(experiment) if " recover " in line)
    options = build_parser().parse_args(shlex.split(line)[3:])
    from swm.cli.make import recovery_settings

    assert recovery_settings(options) == settings
