"""Charts of studies: which methods are in colour, and their ranks before and after healing, by pencil."""

import itertools
import math
import random

import plotly.graph_objects as go
import pytest

from swm.registry import MERGE_RULES, PLANNERS
from swm.reporting.charts import log_axis
from swm.reporting.glossary import method_name
from swm.reporting.palette import method_colour
from swm.reporting.study_charts import GREY, best_methods, depths_chart, ranks_chart
from tests.rows import a_row


def row(method, layers, perplexity, stage="merged", accuracy=None):
    return a_row(
        method=method,
        layers=layers,
        stage=stage,
        average=accuracy,
        average_stderr=0.01,
        perplexities={"t": {"value": perplexity, "low": perplexity, "high": perplexity}},
    )


ORIGINAL = row("original", 30, 10.0, "original", 0.6)


def test_methods_are_ordered_by_mean_rank_over_what_they_share():
    rows = [ORIGINAL]
    for layers, values in ((24, {"a": 20, "b": 30, "c": 40}), (20, {"a": 60, "b": 50, "c": 90})):
        rows += [row(method, layers, value, accuracy=1 / value) for method, value in values.items()]
    rows.append(row("only-deep", 20, 40.0, accuracy=1 / 40))  # first of four at its one depth
    assert best_methods(rows, "t") == ["only-deep", "a", "b", "c"]
    assert best_methods(rows, "accuracy") == ["only-deep", "a", "b", "c"]


@pytest.mark.parametrize("seed", range(10))
def test_the_best_are_in_colour_and_the_others_grey(seed):
    rng = random.Random(seed)
    methods = rng.sample([*PLANNERS, *MERGE_RULES], 9)
    rows = [ORIGINAL, *(row(m, layers, rng.uniform(11, 90)) for m in methods for layers in (24, 20))]
    figure = depths_chart(rows, "t")
    coloured = {line.name: line.line.color for line in figure.data if line.line.color != GREY}
    ranked = best_methods(rows, "t")
    best = [*ranked[:5], *(["rdsc"] if "rdsc" in ranked[5:] else [])]  # the paper's always
    assert coloured == {method_name(method): method_colour(method) for method in best}  # the same in every chart
    assert len({*coloured.values()}) == len(best)
    for line in figure.data:
        assert line.error_y.visible is (line.name in coloured)
    assert {line.name for line in figure.data[-len(best) :]} == {*coloured}  # drawn above the grey ones


@pytest.mark.parametrize("seed", range(10))
def test_each_coloured_line_has_its_name_at_its_end_and_no_two_names_lie_on_each_other(seed):
    rng = random.Random(seed)
    methods = rng.sample([*PLANNERS, *MERGE_RULES], 7)
    rows = [ORIGINAL, *(row(m, layers, rng.uniform(11, 500)) for m in methods for layers in (24, 20))]
    figure = depths_chart(rows, "t")
    low, high = figure.layout.yaxis.range
    room = figure.layout.height - figure.layout.margin.b - figure.layout.margin.t
    ends = {line.name: (line.x[-1], math.log10(line.y[-1])) for line in figure.data if line.line.color != GREY}
    places = []
    for note in figure.layout.annotations:
        if note.text == "original":
            continue
        name, above, _ = note.text.partition(" (above)")
        x, y = ends.pop(name)
        assert (note.x, note.y) == (x, pytest.approx(min(y, high)))
        assert bool(above) == (y > high)
        places.append(room * (note.y - low) / (high - low) + note.yshift)
    assert ends == {}
    places.sort()
    assert all(after - before >= 15.9 for before, after in itertools.pairwise(places))
    assert places[0] >= 0
    assert places[-1] <= room


def test_ranks_before_and_after_healing_are_joined():
    values = {"a": (20, 19), "b": (30, 15), "c": (40, 18)}
    rows = [ORIGINAL, row("unhealed", 24, 5.0)]
    for method, (before, after) in values.items():
        rows += [row(method, 24, before), row(method, 24, after, "recovered")]
    figure = ranks_chart(rows, "t")
    assert {line.text[1]: tuple(line.y) for line in figure.data} == {"a": (1, 3), "b": (2, 1), "c": (3, 2)}
    assert ranks_chart([ORIGINAL, row("a", 24, 20.0)], "t") is None


def test_methods_that_end_with_the_same_model_share_a_rank_and_a_label():
    rows = [ORIGINAL]
    for method, before, after in (("a", 20, 15), ("b", 30, 15), ("c", 40, 18)):
        rows += [row(method, 24, before), row(method, 24, after, "recovered")]
    lines = {tuple(line.y): line.text[1] for line in ranks_chart(rows, "t").data}
    assert lines == {(1, 1): "a = b", (2, 1): "", (3, 3): "c"}


@pytest.mark.parametrize("broken", [560.0, 603.0, 1e6])
def test_a_broken_model_is_out_of_the_chart_and_not_cut_in_half(broken):
    figure = go.Figure().add_scatter(y=[30.0, 189.0]).add_scatter(y=[broken, None])
    log_axis(figure, 26.4)  # a perplexity of 528 is 20 times that
    low, high = figure.layout.yaxis.range
    assert low < math.log10(26.4) < math.log10(1.2 * 189) < high < math.log10(0.97 * broken)


def test_of_a_point_above_the_chart_no_error_bar_shows():
    bars = {"array": [40.0, 140.0], "arrayminus": [38.0, 114.0]}
    figure = go.Figure().add_scatter(y=[189.0, 603.0], error_y=bars)
    log_axis(figure, 26.4)
    assert list(figure.data[0].error_y.arrayminus) == [38.0, 0.0]
