"""The run that pages lead with, on rows from pencil."""

import math
import random

import pytest

from swm.reporting.headline import headline, perplexity_ratio
from tests.rows import a_row


def row(run, parameters, *values, created=0.0, control=False, experiment="e"):
    texts = {f"text{i}": {"value": value} for i, value in enumerate(values)}
    return a_row(
        run=run, experiment=experiment, parameters=parameters, perplexities=texts, created=created, control=control
    )


ORIGINAL = row("baseline", 100, 20.0, 10.0)


@pytest.mark.parametrize(
    ("rows", "leads"),
    [
        ([ORIGINAL, row("a", 80, 22.0, 11.0), row("b", 70, 23.0, 11.5)], "b"),  # both within 1.2: the smaller
        ([ORIGINAL, row("a", 80, 22.0, 11.0), row("b", 70, 90.0, 50.0, created=9.0)], "a"),  # the newest is too bad
        ([ORIGINAL, row("a", 80, 40.0, 20.0), row("b", 70, 90.0, 50.0)], "a"),  # none within: the best
        ([ORIGINAL, row("a", 80, 22.0, 11.0), row("b", 80, 21.0, 11.0)], "b"),  # equal size: the better
        ([ORIGINAL, row("c", 100, 18.0, 9.0, control=True), row("a", 80, 90.0, 40.0)], "a"),  # never the control
        ([ORIGINAL, row("a", 80), row("b", 70, 90.0, 50.0)], "b"),  # an unscored one tells nothing
        ([ORIGINAL, row("a", 80, created=1.0), row("b", 70, created=2.0)], "b"),  # nothing is known: the newest
        ([ORIGINAL], "baseline"),
        ([row("a", 80, 22.0)], "a"),
    ],
)
def test_leads_with_the_smallest_that_is_still_good(rows, leads):
    for order in (rows, rows[::-1]):
        assert order[headline(order)].run == leads


def test_each_run_is_measured_by_its_own_original():
    other = row("baseline", 100, 200.0, 100.0, experiment="f")
    rows = [ORIGINAL, row("a", 90, 21.0, 11.0), other, row("b", 80, 210.0, 105.0, experiment="f")]
    assert rows[headline(rows)].run == "b"


def test_the_ratio_is_the_mean_over_shared_texts():
    assert perplexity_ratio(row("a", 1, 40.0, 10.0), ORIGINAL) == pytest.approx(math.sqrt(2))
    assert perplexity_ratio(row("a", 1, 40.0), ORIGINAL) == pytest.approx(2)
    assert perplexity_ratio(row("a", 1), ORIGINAL) is None
    assert perplexity_ratio(ORIGINAL, None) is None
    rng = random.Random(1)
    values = [rng.uniform(1, 99) for _ in range(4)]
    forth, back = (
        perplexity_ratio(row("a", 1, *one), row("baseline", 1, *two))
        for one, two in ((values[:2], values[2:]), (values[2:], values[:2]))
    )
    assert forth * back == pytest.approx(1)


def test_perplexities_of_another_version_of_a_text_are_not_divided():
    shorter = row("a", 80, 22.0, 90.0)
    shorter.perplexities["text1"]["length_tokens"], original = 64, row("baseline", 100, 20.0, 10.0)
    for entry in original.perplexities.values():
        entry["length_tokens"] = 256
    shorter.perplexities["text0"]["length_tokens"] = 256
    assert perplexity_ratio(shorter, original) == pytest.approx(1.1)
    shorter.perplexities["text0"]["text_hash"], original.perplexities["text0"]["text_hash"] = "a", "b"
    assert perplexity_ratio(shorter, original) is None
