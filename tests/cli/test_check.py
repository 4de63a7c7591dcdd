"""What can be refused without a model is refused at once: nothing heavy is imported for it."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swm.checked import choices, limits
from swm.cli.options import build_parser
from swm.cli.plans import recovery_settings
from swm.errors import SettingsError
from swm.jobs.needs import recovery_in
from swm.settings import SETTINGS, RecoverySettings, preset_settings

CODE = """
import contextlib, io, json, sys
from swm.cli.main import main
for command in json.loads(sys.argv[1]):
    told, code = io.StringIO(), 0
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(command.split())
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, told.getvalue(), sorted({"torch", "transformers", "peft", "lm_eval"} & {*sys.modules})]))
"""
REFUSED = {
    "plan example-demo --threshold 2": "Threshold 2.0 is out of range",
    "search example-demo --rule chess": "'chess' is not a merge rule",
    "measure example-demo --metric chess": "'chess' is not a similarity metric",
    "create É --model x": "is not a valid name",
    "answer nope baseline --prompt x": "There is no experiment nope",
    "evaluate nope baseline": "There is no experiment nope",
    "time nope baseline": "There is no experiment nope",
    "plan example-demo --threshold 0.9 --planner best": "--planner chooses the layers itself",
    "plan example-demo --planner best --layers 9 --minutes 1e9": "--minutes 1e+09 is out of range",
    "plan example-demo --windows -1-0,4-5 --rule keep_first --precision exact": "--windows needs none",
    "models --json": "",
}


@pytest.mark.cold
def test_it_takes_no_torch_to_say_so(home):
    """One after the other in a new process: none of them imports anything heavy."""
    environment = {**os.environ, "SWM_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps([*REFUSED])], capture_output=True, text=True, env=environment
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(REFUSED), done.stderr
    for (code, told, heavy), (command, message) in zip(answers, REFUSED.items(), strict=True):
        assert (code, heavy) == (1 if message else 0, []), command
        assert message in told
        assert "Traceback" not in told


def values_of(name):
    """Any value that a setting of healing can have."""
    if allowed := choices(RecoverySettings, name):
        return st.sampled_from(allowed)
    if isinstance(getattr(RecoverySettings(), name), str):
        return st.sampled_from(["alpaca-cleaned", "own=text", "a b"])
    low, high = limits(RecoverySettings, name)
    return st.integers(low, high) if isinstance(low, int) and name != "dropout" else st.floats(low, high)


@given(st.sampled_from(SETTINGS).flatmap(lambda name: st.tuples(st.just(name), values_of(name))))
def test_each_setting_of_healing_is_set_by_its_name_in_every_form(setting):
    name, value = setting
    option = f"--{name.replace('_', '-')}"
    forms = [[option, f"{value}"], [f"{option}={value}"]]
    if name != "steps":
        forms += [["--set", f"{name}={value}"], ["--set", f"{option[2:]}={value}"]]
    for form in forms:
        options = build_parser().parse_args(["recover", "mine", "first", *form])
        assert recovery_settings(options) == preset_settings("quick", **{name: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--set", "rank"), "'rank' is not a setting of healing"),
        (("--set", "chess=1"), "'chess=1' is not a setting of healing"),
        (("--rank", "many"), "rank must be a whole number (got 'many')"),
        (("--set", "dropout=x"), "dropout must be a number"),
        (("--rank",), "argument --rank: expected one argument"),
        (("--texts", "--again"), "argument --texts: expected one argument"),
        (("--ra", "1", "--s", "2"), "ambiguous option: --s could match"),
        (("--chess", "1"), "unrecognized arguments: --chess 1"),
    ],
)
def test_a_wrong_setting_is_wrong_usage(given, message, capsys):
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args(["recover", "mine", "first", *given])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("given", "message"), [("rank=0", "rank 0 is out of range"), ("adapt=some", "adapt must be")])
def test_a_setting_out_of_range_is_told(given, message):
    with pytest.raises(SettingsError, match=message):
        recovery_settings(build_parser().parse_args(["recover", "mine", "first", "--set", given]))


def test_the_memory_of_a_job_is_that_of_the_settings_in_whatever_form_they_come():
    for words in ("--batch=2 --length 128 --preset=paper", "--set batch=2 --set=length=128 --preset paper"):
        arguments = ["recover", "mine", "first", *words.split()]
        asked = preset_settings("paper", batch=2, length=128)
        assert recovery_in(arguments) == recovery_settings(build_parser().parse_args(arguments)) == asked
