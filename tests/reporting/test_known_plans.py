"""The chart of all plans: readable on a logarithmic axis, whatever the perplexities."""

import math

import pytest

from swm.plan import MergePlan, Window
from swm.reporting.known_plans import BY_MEMORY, ORIGINAL, KnownPlan, plans_chart, with_front


@pytest.mark.parametrize("worst", [52.0, 900.0, 3e9])
def test_the_axis_spans_the_plans_and_names_its_ticks(worst):
    plans = [
        KnownPlan(ORIGINAL, MergePlan(6), 9e6, 1.0, 50.0),
        KnownPlan("a", MergePlan(6, (Window(0, 1),), "mean"), 8e6, 1.1, worst),
    ]
    figure = plans_chart(with_front(plans, BY_MEMORY), BY_MEMORY, 1.2, "LAMBADA")
    low, high = figure.layout.yaxis.range
    highest = min(worst, 20 * 50)  # plans above are broken, and would squeeze the rest together
    assert low < math.log10(50) <= math.log10(highest) < high < math.log10(highest) + 0.2
    assert figure.layout.annotations[0].y == pytest.approx(math.log10(60))
    for value, text in zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True):
        assert float(text.replace(",", "")) == pytest.approx(value)
