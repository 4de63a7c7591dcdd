"""A sweep put together on its page, as the file that the command line takes."""

import pytest
import yaml

from swm.jobs.sweep_file import read_sweep
from tests.pages.test_pages import opened, texts


def file_of(test):
    return yaml.safe_load(test.code[0].value)


@pytest.mark.parametrize(
    ("target", "amounts", "in_file"),
    [
        ("ratio", ["0.1", "0.25"], [0.1, 0.25]),
        ("layers", ["24", "20"], [24, 20]),
        ("memory", ["900MiB", "1GiB"], ["900MiB", "1GiB"]),
        ("parameters", ["5.5B"], ["5.5B"]),
        ("speedup", ["1.3"], [1.3]),
        ("loss", ["5%"], ["5%"]),
    ],
)
def test_every_target_becomes_a_plan_of_the_file(target, amounts, in_file):
    test = opened("pages/sweeps.py")
    test.selectbox(key="sweep_target").set_value(target).run()
    assert not test.exception
    test.multiselect(key=f"sweep_amounts_{target}").set_value(amounts).run()
    assert [plan[target] for plan in file_of(test)["plans"]] == [in_file, in_file]
    assert len(read_sweep(file_of(test)).cells) == 2 * 2 * len(amounts)
    assert not test.button(key="sweep_start").disabled


@pytest.mark.parametrize(
    ("target", "amount", "message"),
    [
        ("memory", "lots", "'lots' is not a size. Write it as 6GiB or 900MiB."),
        ("layers", "2.5", "must be a whole number"),
        ("speedup", "fast", "must be a number"),
        ("loss", "5", "'5' is not a loss. Write a share above 0, such as 5%."),
    ],
)
def test_an_amount_that_is_none_is_told_and_nothing_starts(target, amount, message):
    test = opened("pages/sweeps.py")
    test.selectbox(key="sweep_target").set_value(target).run()
    test.multiselect(key=f"sweep_amounts_{target}").set_value([amount]).run()
    assert message in texts(test)
    assert test.button(key="sweep_start").disabled


def test_a_target_without_amounts_has_no_runs():
    test = opened("pages/sweeps.py")
    test.selectbox(key="sweep_target").set_value("layers").run()
    assert "plans has no entry, so the sweep has no runs" in texts(test)


def test_the_address_carries_the_pickers():
    address = {"sweep_name": "linked", "sweep_methods": "LaCo", "sweep_target": "Layers left", "sweep_limit": "7"}
    test = opened("pages/sweeps.py", **address, sweep_other_texts="a.txt")
    test.multiselect(key="sweep_amounts_layers").set_value(["24"]).run()
    assert not test.exception
    linked = file_of(test)
    assert (linked["name"], linked["limit"], linked["plans"]) == ("linked", 7, [{"planner": "laco", "layers": [24]}])
    assert linked["texts"][1].endswith("a.txt")
