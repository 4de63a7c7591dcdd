"""What can be refused without a model is refused at once: nothing heavy is imported for it."""

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
from swm.settings import SETTINGS, RecoverySettings, preset_settings

CODE = """
import sys
from swm.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(end.code, sorted({"torch", "transformers", "peft", "lm_eval"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("plan example-demo --threshold 2", "Threshold 2.0 is out of range"),
        ("search example-demo --rule chess", "'chess' is not a merge rule"),
        ("measure example-demo --metric chess", "'chess' is not a similarity metric"),
        ("create É --model x", "is not a valid name"),
        ("answer nope baseline --prompt x", "There is no experiment nope"),
        ("evaluate nope baseline", "There is no experiment nope"),
        ("time nope baseline", "There is no experiment nope"),
        (
            "plan example-demo --threshold 0.9 --planner best",
            "--planner chooses the layers itself",
        ),
        ("plan example-demo --planner best --layers 9 --minutes 1e9", "--minutes 1e+09 is out of range"),
        ("plan example-demo --windows -1-0,4-5 --rule keep_first --precision exact", "--windows needs none"),
        ("models --json", ""),
    ],
)
@pytest.mark.cold
def test_it_takes_no_torch_to_say_so(command, message, home):
    environment = {**os.environ, "SWM_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *command.split()], capture_output=True, text=True, env=environment
    )
    assert message in done.stderr
    if message:
        assert done.stdout.strip() == "1 []"
    assert "Traceback" not in done.stderr


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
        (("--rank", "many"), "rank must be a whole number \\(got 'many'\\)"),
        (("--set", "dropout=x"), "dropout must be a number"),
        (("--rank", "0"), "rank 0 is out of range"),
        (("--rank",), "rank must be a whole number \\(got ''\\)"),
        (("--adapt", "some"), "adapt must be one of"),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_can_be(given, message):
    with pytest.raises(SettingsError, match=message):
        recovery_settings(build_parser().parse_args(["recover", "mine", "first", *given]))
