"""The report's pictures, read back from their SVG and held against the numbers that they are of."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.colors import sample_colorscale, unlabel_rgb

from swm.plan import Window
from swm.reporting.palette import BETTER, WORSE
from swm.reporting.pictures import Interval, intervals_picture, loss_picture, map_picture


def parts(picture, tag):
    root = ElementTree.fromstring(str(picture))
    return [part.attrib | {"text": part.text} for part in root.iter() if part.tag == tag]


@given(st.lists(st.floats(-0.2, 1.0), min_size=9, max_size=9))
def test_each_cell_of_the_map_has_its_colour_in_its_place(values):
    matrix = [values[:3], values[3:6], values[6:]]
    boxes = [box for box in parts(map_picture(matrix), "rect") if box["fill"] != "none"]
    for y in range(3):
        for x in range(3):
            middle = 34 + 140 * (x + 0.5), 140 * (2 - y + 0.5)  # layer 0 is at the bottom
            (colour,) = [box["fill"] for box in boxes if inside(box, *middle)]
            (exact,) = sample_colorscale("Cividis", [min(1.0, max(0.0, matrix[y][x]))])
            assert max(abs(a - b) for a, b in zip(unlabel_rgb(colour), unlabel_rgb(exact), strict=True)) < 4


def inside(box, x, y):
    left, top = float(box["x"]), float(box["y"])
    return left < x < left + float(box["width"]) and top < y < top + float(box["height"])


def test_windows_are_outlined_where_their_layers_are():
    outlines = list(parts(map_picture([[1.0] * 4] * 4, [Window(1, 2), Window(-1, 0)]), "rect"))
    outlines = [box for box in outlines if box["fill"] == "none" and box["stroke"] != "#fff"]
    places = [tuple(float(box[name]) for name in ("x", "y", "width")) for box in outlines]
    assert places == [(34 + 105, 105, 210), (34, 315, 105)]


def test_differences_lie_in_proportion_and_have_the_colour_of_their_verdict():
    rows = [
        Interval("a<b", -4.0, -6.0, -2.0, "worse"),
        Interval("b", 1.0, -1.0, 3.0, "no difference"),
        Interval("c", 5.0, 4.0, 6.0, "better"),
    ]
    picture = intervals_picture(rows, "points")
    zero = float(parts(picture, "line")[0]["x1"])
    dots, paths = parts(picture, "circle"), parts(picture, "path")
    step = (float(dots[2]["cx"]) - zero) / 5.0  # pixels for each point
    for row, dot, path in zip(rows, dots, paths, strict=True):
        low, high = map(float, re.fullmatch(r"M([\d.]+),[\d.]+H([\d.]+)", path["d"]).groups())
        found = [(x - zero) / step for x in (float(dot["cx"]), low, high)]
        assert found == pytest.approx([row.value, row.low, row.high], abs=0.06)
    assert [dot["fill"] for dot in dots][::2] == [WORSE, BETTER]
    assert dots[1]["fill"] not in (WORSE, BETTER)
    assert [text["text"] for text in parts(picture, "text")][:3] == ["a<b", "b", "c"]  # escaped


def test_losses_go_down_where_they_fall_and_nothing_is_drawn_without_any():
    events = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0, "held_out_loss": 3.5}, {"step": 4, "loss": 2.0}]
    picture = loss_picture(events)
    points = [tuple(map(float, point.split(","))) for point in parts(picture, "polyline")[0]["points"].split()]
    assert [y for _, y in points] == [0.0, 90.0, 180.0]
    assert [x - 44 for x, _ in points] == [140.0, 280.0, 560.0]
    assert [(dot["cx"], dot["cy"]) for dot in parts(picture, "circle")] == [("324.0", "45.0")]
    assert loss_picture([{"step": 1}]) == ""
    assert parts(loss_picture([{"step": 1, "loss": 2.0}]), "polyline")  # one step, and no range
