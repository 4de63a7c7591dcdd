"""Numbers are as long as they say something."""

import pytest

from swm.reporting.numbers import interval


@pytest.mark.parametrize(
    ("value", "text"),
    [(63.08, "63.1 [62.1, 64.1]"), (4181.5, "4,182 [4,180, 4,182]"), (4054701.7, "4.1e+06 [4.1e+06, 4.1e+06]")],
)
def test_perplexities_are_as_long_as_they_say_something(value, text):
    assert interval({"value": value, "low": value - 1, "high": value + 1}) == text
