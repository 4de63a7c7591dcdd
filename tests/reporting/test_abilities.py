"""Tests of swm.reporting.abilities and of the rise with its interval."""

import json
import math
import random

import pytest

from swm.evaluation.paired import relative_rise
from swm.plan import Window
from swm.reporting.abilities import ability_map, conclusion, profile, verdict, worst_requests
from swm.reporting.ability_charts import abilities_heatmap, profile_chart
from swm.texts.requests import request_key, requests_of

UNSURE = 0.02  # half the width of the intervals made here


def rise(value, reach=UNSURE):
    return {"value": value, "low": value - reach, "high": value + reach, "documents": 40}


def test_ninety_five_of_a_hundred_intervals_of_a_rise_hold_the_true_one():
    """Bits that differ widely between requests, a rise that does too, and the original's mean uncertain."""
    draw, held, samples = random.Random(5), 0, 2000
    for _ in range(samples):
        before = [draw.lognormvariate(0, 0.6) for _ in range(40)]
        after = [value * (1.2 + draw.gauss(0, 0.15)) for value in before]
        found = relative_rise(before, after)
        held += found["low"] <= 0.2 <= found["high"]
    assert 0.93 < held / samples < 0.97


def test_a_rise_is_the_quotient_of_the_means():
    found = relative_rise([1.0, 3.0], [2.0, 4.0])
    assert found["value"] == pytest.approx(0.5)
    assert found["documents"] == 2
    same = relative_rise([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert (same["low"], same["high"]) == pytest.approx((1.0, 1.0))


def map_with(layers=10, **rises):
    """A map whose layers have these rises; 0.02 elsewhere."""
    scores = {
        name: [[1 + found.get(layer, 0.02) + wobble for wobble in (-0.01, 0.0, 0.01)] for layer in range(layers)]
        for name, found in rises.items()
    }
    data = {
        "abilities": {
            name: {
                "ids": ["a", "b", "c"],
                "scores": {
                    "original": {"bits": [1.0, 1.0, 1.0]},
                    **{f"{layer}": {"bits": bits} for layer, bits in enumerate(rows)},
                },
            }
            for name, rows in scores.items()
        }
    }
    return ability_map(data, layers)


def test_the_sentence_names_the_layers_that_one_ability_needs_and_another_hardly():
    found = map_with(facts={1: 0.5}, reading={4: 0.5, 5: 0.6, 6: 0.5})
    assert found.abilities == ["facts", "reading"]
    assert found.rises["reading"][5]["value"] == pytest.approx(0.6)
    assert conclusion(found) == (
        "Layers 4-6 carry reading (+53 % bits without one of them) and are hardly needed for facts (+2 %)."
    )


def test_no_sentence_without_a_certain_difference():
    assert conclusion(map_with(facts={4: 0.1}, reading={4: 0.12})) == ""
    assert conclusion(map_with(facts={4: 0.9, 5: 0.9}, reading={4: 0.8, 5: 0.8})) == ""
    assert conclusion(map_with(layers=2, facts={})) == ""


def test_the_verdict_names_the_most_and_the_least_hurt():
    rises = {"facts": rise(0.15), "reading": rise(0.45, 0.07), "logic": rise(0.01)}
    assert verdict(rises) == "keeps logic (+1 % [-1, +3]), loses reading: +45 % [+38, +52] bits"
    assert verdict({"logic": rise(0.01)}) == ""
    assert verdict({"logic": rise(0.3)}) == "loses logic: +30 % [+28, +32] bits"


def test_a_profile_compares_the_requests_that_both_answered():
    def answers(**bits):
        return {"abilities": {"facts": {"ids": list(bits), "scores": {"model": {"bits": list(bits.values())}}}}}

    found = profile(answers(a=1.0, b=2.0, c=9.0), answers(b=3.0, d=5.0, a=2.0))
    assert found["facts"]["value"] == pytest.approx(5 / 3 - 1)
    assert found["facts"]["documents"] == 2
    assert profile(answers(a=1.0), answers(a=2.0)) == {}


def test_the_requests_that_suffered_most_come_first_with_what_was_picked(tmp_path):
    file = tmp_path / "sums.jsonl"
    rows = [
        {"prompt": f"example\n\n{n} + 1 =", "answer": f" {n + 1}", "choices": [" 0", f" {n + 1}"]} for n in range(1, 60)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    asked = requests_of(str(file), "choosing", 5)
    after = [1.0, 5.0, 0.5, 3.0, 2.0]
    data = {
        "abilities": {
            str(file): {
                "ids": [*map(request_key, asked[:4]), "999:gone"],
                "scores": {
                    "original": {"bits": [1.0] * 5, "picked": [1, 1, 0, 0, 0]},
                    "3": {"bits": after, "picked": [0, 0, 0, 1, 0]},
                },
            }
        }
    }
    worst = worst_requests(data, str(file), "3", 2)
    assert [each.after for each in worst] == [5.0, 3.0]
    assert [each.question for each in worst] == [asked[n].prompt.split("\n\n")[1] for n in (1, 3)]
    assert (worst[0].picked_before, worst[0].picked_after) == (asked[1].answer, " 0")
    assert [each.after for each in worst_requests(data, str(file), "3", 9)] == [5.0, 3.0]


def test_the_chart_is_pale_where_nothing_is_certain_and_outlines_windows():
    found = map_with(facts={1: 0.5}, python={4: 0.5})
    found.rises["facts"][2] = rise(0.01, 0.3)
    figure = abilities_heatmap(found, (Window(3, 5),))
    heat, cells = figure.data
    rows = dict(zip(heat.y, heat.z, strict=True))
    (facts,) = {cells.y[n] for n, data in enumerate(cells.customdata) if data[0] == "facts"}
    assert rows[facts][1] == pytest.approx(math.sqrt(0.5), abs=1e-3)
    assert rows[facts][2] == pytest.approx(0.3 * math.sqrt(0.01), abs=1e-3)
    assert [row for row in heat.y if all(value is None for value in rows[row])] == [-2, 0]  # titles of the groups
    assert {(shape.x0, shape.x1) for shape in figure.layout.shapes} == {(2.5, 5.5)}
    assert [note.text for note in figure.layout.annotations] == ["<b>Knowledge</b>", "<b>Code</b>"]


def test_each_model_s_rises_stand_in_the_row_of_their_ability():
    figure = profile_chart(
        {"one": {"facts": rise(0.1)}, "two": {"facts": rise(0.2), "python": rise(-0.1)}}, ["red", "blue"]
    )
    assert [list(trace.x) for trace in figure.data] == [[10.0], [20.0, -10.0]]
    assert [round(y) for y in figure.data[1].y] == [0, 1]
    assert list(figure.layout.yaxis.ticktext) == ["Facts", "Python"]
