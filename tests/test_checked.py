"""Every sentence about a wrong value names its place, what it must be and what it is; held against values by hand."""

from dataclasses import FrozenInstanceError, replace
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from swm.checked import Between, Many, Record, checked, choices, explained, limits
from swm.errors import SettingsError


@checked
class Settings:
    steps: Annotated[int, Between(1, 5000)] = 10
    rate: Annotated[float, Between(0.5, 2)] = 1.0
    name: str = "a"
    how: Literal["fast", "slow"] = "fast"
    on: bool = True
    seeds: Many[int] = ()


class Inner(Record):
    value: float


class File(Record):
    inner: dict[str, Inner]
    pairs: list[list[int]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 2.5}, "steps must be a whole number (got 2.5)."),
        ({"steps": True}, "steps must be a whole number (got True)."),
        ({"steps": "3"}, "steps must be a whole number (got '3')."),
        ({"steps": 0}, "steps 0 is out of range: use 1 to 5,000."),
        ({"steps": 5001}, "steps 5001 is out of range: use 1 to 5,000."),
        ({"rate": "x"}, "rate must be a number (got 'x')."),
        ({"rate": float("nan")}, "rate nan is out of range: use 0.5 to 2."),
        ({"name": 7}, "name must be text (got 7)."),
        ({"how": "odd"}, "how must be one of 'fast', 'slow' (got 'odd')."),
        ({"on": 1}, "on must be true or false (got 1)."),
        ({"seeds": 3}, "seeds must be a list (got 3)."),
        ({"seeds": [1, "x"]}, "seeds.1 must be a whole number (got 'x')."),
        ({"stepz": 1}, "unknown entry 'stepz'."),
        ({"name": "x" * 200, "steps": "y" * 200}, f"steps must be a whole number (got '{'y' * 76}...)."),
    ],
)
def test_a_wrong_setting_is_named(change, sentence):
    with pytest.raises(SettingsError) as error:
        Settings(**change)
    assert str(error.value) == sentence
    with pytest.raises(SettingsError):
        replace(Settings(), **change)


@given(st.integers(1, 5000), st.floats(0.5, 2), st.lists(st.integers()))
def test_what_lies_in_the_range_is_kept_as_it_is(steps, rate, seeds):
    settings = Settings(steps=steps, rate=rate, seeds=seeds)
    assert (settings.steps, settings.rate, settings.seeds) == (steps, rate, tuple(seeds))


def test_settings_cannot_be_changed_and_say_what_they_take():
    with pytest.raises((FrozenInstanceError, ValidationError)):
        Settings().steps = 3
    assert limits(Settings, "steps") == (1, 5000)
    assert choices(Settings, "how") == ("fast", "slow")
    assert choices(Settings, "name") == ()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"pairs": []}, "inner is missing"),
        ({"inner": {"a": {}}, "pairs": []}, "inner.a.value is missing"),
        ({"inner": {"a": {"value": "x"}}, "pairs": []}, "inner.a.value must be a number (got 'x')"),
        ({"inner": {}, "pairs": [[1], ["x"]]}, "pairs.1.0 must be a whole number (got 'x')"),
        ([], "the whole file must be an object (got [])"),
    ],
)
def test_a_wrong_entry_of_a_file_is_named(data, sentence):
    with pytest.raises(ValidationError) as error:
        File.model_validate(data)
    assert explained(error.value) == sentence


def test_entries_that_are_not_declared_are_kept():
    assert File.model_validate({"inner": {}, "pairs": [], "more": 3}).model_dump()["more"] == 3
