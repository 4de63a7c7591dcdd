"""Compare with many models, on the shipped study of methods: filters, a baseline of one's own, differences only."""

import itertools
import json
import math
import re
import statistics
from dataclasses import replace

import pytest

from pages.shared.filters import GROUPS
from swm.reporting.compare import compare, documents_of, flat_rows
from swm.reporting.compare_charts import parallel_chart, relative_speed, score_against_speed, scores_chart, scores_grid
from swm.reporting.headline import headline
from swm.reporting.names import row_name, text_name
from swm.reporting.palette import MODEL_COLOURS, ORIGINAL, method_colour, model_colours, row_colours
from swm.workspace.experiments import Experiment
from tests.pages.test_pages import opened

STUDY = "example-study"


@pytest.fixture(scope="module")
def rows():
    return flat_rows(compare(Experiment.open(STUDY)))


def compared(**query):
    """The page with all models of the study."""
    test = opened("pages/compare.py", **query)
    test.sidebar.selectbox[0].select(STUDY).run()
    return with_all(test, STUDY)


def with_all(test, experiment):
    shown = test.multiselect(key=f"compare_runs_{experiment}")
    shown.set_value(shown.options).run()
    assert not test.exception
    return test


def test_at_first_the_best_model_its_control_and_what_loses_least_are_shown(rows):
    test = opened("pages/compare.py", experiment=STUDY)
    shown = test.multiselect(key=f"compare_runs_{STUDY}").value
    assert len(shown) == 6
    by_name = {row_name(row): row for row in rows}
    best = row_name(rows[headline(rows)])
    depth = by_name[best].layers
    assert {"original", best} <= {*shown}

    def lost(row):
        return math.prod(entry["value"] for entry in row.perplexities.values())

    others = sorted((row for row in rows if row.layers == depth and row_name(row) != best), key=lost)
    (paper,) = (row_name(row) for row in others if row.chosen_by == "rdsc")
    least = [name for row in others if (name := row_name(row)) != paper][:3]
    assert {*shown} == {"original", best, paper, *least}
    assert "runs" not in test.query_params  # what it opens on is no choice


def test_seeds_of_one_method_are_one_row_of_means():
    experiment = Experiment.open("example-healing")
    test = with_all(opened("pages/compare.py", experiment="example-healing"), "example-healing")
    shown = test.multiselect(key="compare_runs_example-healing").value
    healed = [name for name in shown if "LoRA" in name]
    assert healed
    assert not [name for name in shown if "-seed-" in name]
    assert {name.rpartition(", ")[2] for name in healed} == {"3 seeds)"}
    table = table_with(test, "layers", "size, MiB")
    for name in healed:
        run = name.split(" (")[0]
        files = [experiment.run(run + seed).scores()["perplexity"]["squad"] for seed in ("", "-seed-2", "-seed-3")]
        mean = math.exp(statistics.fmean(math.log(entry["value"]) for entry in files))
        said = float(table.loc[name, squad(table)].split()[0])
        assert said == pytest.approx(mean, abs=0.06)


def squad(table):
    return next(column for column in table.columns if column.startswith("perplexity, SQuAD"))


def table_with(test, *columns):
    tables = [element.value for element in (*test.dataframe, *test.table)]
    return next(table for table in tables if {*columns} <= {*table.columns})


def figure(test, key):
    (chart,) = [chart for chart in test.get("plotly_chart") if chart.proto.id.endswith(f"-{key}")]
    return json.loads(chart.proto.spec)


def test_filters_leave_the_models_of_all_chosen_groups(rows):
    test = compared(compare_group="model")
    assert list(table_with(test, "layers", "size, MiB").index) == [row_name(row) for row in rows]
    test.multiselect(key="compare_layers").select("24 layers").run()
    left = [row_name(row) for row in rows if row.layers == 24]
    assert list(table_with(test, "layers", "size, MiB").index) == left
    methods = test.multiselect(key="compare_method")
    assert "SLEB" in methods.options  # only what is left is offered
    methods.select("SLEB").select("Beam search, fitted (best)").run()
    assert sorted(table_with(test, "compared with").index) == ["best-24 (merged)", "sleb-24 (merged)"]
    assert not test.exception


def test_a_pinned_model_is_what_all_others_are_compared_with(rows):
    test = compared(compare_group="model")
    test.selectbox(key="compare_with").select("sleb-24 (merged)").run()
    costs = table_with(test, "compared with")
    assert {*costs["compared with"]} == {"sleb-24 (merged)"}
    assert list(costs.index) == [row_name(row) for row in rows if row_name(row) != "sleb-24 (merged)"]
    by_name = {row_name(row): row for row in rows}
    pinned, best = by_name["sleb-24 (merged)"], by_name["best-24 (merged)"]
    ratio = best.perplexities["squad"]["value"] / pinned.perplexities["squad"]["value"]
    assert costs.loc["best-24 (merged)", "perplexity, SQuAD"].startswith(f"× {ratio:.2f} [")
    answers = [documents_of(row)["tasks"] for row in (pinned, best)]
    means = [
        statistics.fmean(statistics.fmean(a["correct"] for a in task) for task in tasks.values()) for tasks in answers
    ]
    difference = 100 * (means[1] - means[0])
    value, low, high = re.fullmatch(
        r"(\S+) \[(.+), (.+)\]", costs.loc["best-24 (merged)", "accuracy (points)"]
    ).groups()
    assert float(low) < difference < float(high)
    assert value == ("unclear" if float(low) <= 0 <= float(high) else f"{difference:+.1f}")


def test_differences_only_hides_what_is_equal_for_all():
    test = compared()
    test.multiselect(key=f"compare_runs_{STUDY}").set_value(["sleb-24 (merged)", "best-24 (merged)"]).run()
    whole = table_with(test, "sleb-24 (merged)")
    test.toggle(key="compare_differing").set_value(True).run()
    differing = table_with(test, "sleb-24 (merged)")
    equal = whole["sleb-24 (merged)"] == whole["best-24 (merged)"]
    assert {"layers", "size, MiB"} <= {*whole.index[equal]}
    assert list(differing.index) == list(whole.index[~equal])
    assert whole.loc[differing.index].equals(differing)


def test_a_cell_wraps_only_before_its_interval():
    test = opened("pages/compare.py", experiment="example-demo")
    for element in test.table:
        for cell in element.value.to_numpy().ravel():
            value, bracket, interval = cell.partition("[")
            assert " " not in interval, cell
            assert not value.startswith("× "), cell
            assert not bracket or value.endswith(" "), cell


def test_the_grid_shows_accuracies_and_their_differences(rows):
    reference = rows[3]
    (grid,) = scores_grid(rows, [row_name(row) for row in rows], [reference] * len(rows)).data
    for y, row in enumerate(rows):
        for x, task in enumerate(grid.x):
            value = row.scores[task]["value"]
            assert grid.text[y][x] == f"{100 * value:.1f}"
            assert grid.z[y][x] == pytest.approx(100 * value - 100 * reference.scores[task]["value"])
    other = replace(rows[0], scores={**rows[0].scores, "piqa": {**rows[0].scores["piqa"], "documents": 7}})
    (grid,) = scores_grid([other, reference], ["other", "reference"], [reference] * 2).data
    assert [grid.x[x] for x, value in enumerate(grid.z[0]) if value is None] == ["piqa"]


def test_tasks_that_the_original_guesses_are_named():
    test = opened("pages/compare.py", experiment="example-demo")
    said = " ".join(caption.value for caption in test.caption)
    assert "On boolq, winogrande the original is not above chance" in said


def test_on_every_axis_of_parallel_coordinates_better_is_up(rows):
    rows = [row for row in rows if row.tokens_per_second]
    names = [row_name(row) for row in rows]
    figure, without = parallel_chart(rows, names, names, row_colours(rows))
    first, *axes = figure.data[0].dimensions
    assert without == []
    assert list(first.ticktext) == names
    values = {
        "layers": ([row.layers for row in rows], False),
        "perplexity,<br>SQuAD": ([row.perplexities["squad"]["value"] for row in rows], False),
        "average<br>accuracy, %": ([100 * row.average for row in rows], True),
        "relative<br>speed": ([relative_speed(row) for row in rows], True),
    }
    shown = {axis.label: axis for axis in axes}
    for label, (expected, high_is_better) in values.items():
        axis = shown[label]
        log = label.startswith("perplexity")
        if log:
            expected = [min(value, 20 * min(expected)) for value in expected]
        assert [10**value if log else value for value in axis.values] == pytest.approx(expected)
        best = (max if high_is_better else min)(axis.values)
        assert axis.range[1] == best  # the upper end
        for tick, text in zip(axis.tickvals or (), axis.ticktext or (), strict=True):
            number = float(text.replace(",", ""))
            assert tick == pytest.approx(math.log10(number) if log else number)


def test_a_model_that_lacks_a_number_has_no_line_and_is_named(rows):
    few = rows[:4]
    few[2] = replace(few[2], average=None)
    figure, without = parallel_chart(few, list("abcd"), list("abcd"), list(MODEL_COLOURS[:4]))
    assert without == ["c"]
    assert list(figure.data[0].dimensions[0].ticktext) == list("abd")
    few[1] = replace(few[1], average=None)
    few[3] = replace(few[3], average=None)  # now most lack it, and the axis goes instead
    figure, without = parallel_chart(few, list("abcd"), list("abcd"), list(MODEL_COLOURS[:4]))
    assert without == []
    assert "average<br>accuracy, %" not in [axis.label for axis in figure.data[0].dimensions]


@pytest.mark.parametrize("by", GROUPS)
def test_lines_can_be_coloured_by_each_grouping(by):
    test = compared(compare_group=by)
    assert not [chart for chart in test.get("plotly_chart") if chart.proto.id.endswith("compare_parallel")]
    test.session_state["compare_tradeoffs"] = True  # opened
    test.run()
    first = figure(test, "compare_parallel")["data"][0]["dimensions"][0]
    kinds = {"layers": 4, "stage": 2}
    assert len(first["ticktext"]) == len({*first["ticktext"]}) >= kinds.get(by, 15)
    scale = figure(test, "compare_parallel")["data"][0]["line"]["colorscale"]
    if by == "method":
        assert scale[2 * first["ticktext"].index("SLEB")][1] == method_colour("sleb")  # as on all pages


def test_filters_leave_the_verdict_on_the_best_model_that_is_left(rows):
    """Perplexities against the original's count, also where filters leave the original out."""
    test = compared()
    test.multiselect(key="compare_layers").select("24 layers").run()
    original = rows[0].perplexities

    def ratio(row):
        logs = [math.log(entry["value"] / original[text]["value"]) for text, entry in row.perplexities.items()]
        return sum(logs) / len(logs)

    least = min((row for row in rows if row.layers == 24), key=ratio)
    (verdict,) = [box for box in test.selectbox if box.label == "Verdict on"]
    assert verdict.value == row_name(least)


@pytest.mark.parametrize("by", ["method", "layers", "stage"])
def test_many_models_stand_in_groups(by):
    test = compared(compare_group=by)
    table = next(frame.value for frame in test.dataframe if by in frame.value and "average of tasks, %" in frame.value)
    groups = list(table[by])
    assert [group for group, _ in itertools.groupby(groups)] == list(dict.fromkeys(groups))  # each in one piece
    experiment = Experiment.open(STUDY)
    for name, group in zip(table.index, groups, strict=True):
        plan = experiment.run("baseline" if name == "original" else name.split(" (")[0]).plan
        assert by != "layers" or group == f"{plan.layers_left}"
    if by == "layers":
        assert groups == sorted(groups, key=int, reverse=True)
    chart = figure(test, "compare_pareto")["data"]
    named = {trace["name"]: trace["marker"]["color"] for trace in chart[2:]}
    dots = dict(zip(chart[1]["customdata"], chart[1]["marker"]["color"], strict=True))
    words = " layers" if by == "layers" else ""
    expected = {name: named[group + words] for name, group in zip(table.index, groups, strict=True) if name in dots}
    assert dots == expected
    assert len({*named.values()}) == len({name.split(" + ")[0] for name in named})  # a width cut keeps the colour


def test_a_model_has_one_colour_on_all_charts():
    demo = Experiment.open("example-demo")
    rows = flat_rows(compare(demo))
    names = [row_name(row) for row in rows]
    colours = model_colours(demo)
    assert colours.pop("baseline") == ORIGINAL
    assert len({*colours.values()}) == len(colours)
    by_age = sorted(colours, key=lambda run: demo.run(run).settings["created"])
    assert [colours[run] for run in by_age] == list(MODEL_COLOURS[: len(by_age)])
    whole = {**colours, "baseline": ORIGINAL}
    bars = {bar.name: bar.marker.color for bar in scores_chart(rows, names).data}
    points = score_against_speed(rows, names).data[1]
    dots = dict(zip(points.customdata, points.marker.color, strict=True))
    for row, name in zip(rows, names, strict=True):
        red, green, blue = (int(whole[row.run][at : at + 2], 16) for at in (1, 3, 5))
        healed_later = row.stage == "merged"
        expected = f"rgba({red},{green},{blue},0.45)" if healed_later else whole[row.run]
        assert bars[name] == dots[name] == expected


def test_a_study_of_perplexity_alone_is_compared():
    """Each factor is the quotient of the two perplexities in the runs' own files."""
    experiment = Experiment.open("example-gemma")
    test = with_all(opened("pages/compare.py", experiment="example-gemma"), "example-gemma")
    assert any("None of these models has scores of tasks" in info.value for info in test.info)
    factors = table_with(test, "compared with", "perplexity, SQuAD")
    original = experiment.run("baseline").scores()["perplexity"]
    assert len(factors) == len(experiment.runs()) - 1
    for run in experiment.runs():
        for text, entry in run.scores()["perplexity"].items() if run.plan.windows else ():
            factor = entry["value"] / original[text]["value"]
            shown = factors.loc[f"{run.name} (merged)", f"perplexity, {text_name(text)}"].replace("\u00a0", " ")
            number = shown.split()[1].replace(",", "")
            digits = len(number.partition(".")[2])
            assert digits == (2 if factor < 100 else 0)
            assert float(number) == pytest.approx(factor, abs=0.501 * 10.0**-digits)
    assert [button.proto.label for button in test.get("download_button")] == ["Download all runs as CSV"]


@pytest.mark.parametrize("name", ["example-demo", "example-study", "example-methods"])
def test_no_name_in_the_chart_of_score_against_speed_lies_on_another(name):
    """Each name is a box of 14 by 7 pixels a letter, in a chart of 1,000 by 250 pixels; whichever eight are chosen."""
    rows = flat_rows(compare(Experiment.open(name)))
    for first in range(max(1, len(rows) - 7)):
        some = rows[first : first + 8]
        points = score_against_speed(some, [row_name(row) for row in some]).data[1]
        wide, high = (max(ends) - min(ends) or 1 for ends in (points.x, points.y))
        shown = [
            (1000 * x / wide, 250 * y / high, where, text)
            for x, y, where, text in zip(points.x, points.y, points.textposition, points.text, strict=True)
            if text
        ]
        assert shown
        for (x, y, where, text), (other_x, other_y, other_where, other) in itertools.combinations(shown, 2):
            begins_left = text if x < other_x else other
            ends_right = other if x < other_x else text
            length = 7 * len(begins_left if where.endswith("right") else ends_right)
            covers = where == other_where and abs(x - other_x) < length and abs(y - other_y) < 14
            assert not covers, (text, other)
