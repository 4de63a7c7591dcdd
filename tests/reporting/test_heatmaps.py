"""The colours of a heat map: numbers from pencil, whatever the contrast."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swm.plan import Window
from swm.reporting.heatmaps import (
    CONTRASTS,
    FULL,
    LOGARITHMIC,
    STRETCHED,
    Lines,
    Map,
    difference,
    maps_figure,
    nines,
    similarity_heatmap,
)

MATRIX = [[1.0, 0.99, 0.2], [0.99, 1.0, 0.5], [0.2, 0.5, 1.0]]


def map_of(contrast, matrix=MATRIX):
    return similarity_heatmap(matrix, "CKA", contrast=contrast).data[0]


def test_nines_count_them():
    assert [nines(value) for value in (0, 0.9, 0.99, 0.999)] == pytest.approx([0, 1, 2, 3])
    assert nines(-0.1) == 0
    assert nines(1.0) == pytest.approx(6)


def test_each_contrast_has_its_range_and_readable_ticks():
    full, stretched, logarithmic = map_of(FULL), map_of(STRETCHED), map_of(LOGARITHMIC)
    assert (full.zmin, full.zmax, full.z[0][1]) == (0, 1, 0.99)
    assert (stretched.zmin, stretched.zmax) == pytest.approx((0.2, 0.99))
    assert list(stretched.colorbar.ticktext) == ["0.2", "0.398", "0.595", "0.792", "0.99"]
    assert (logarithmic.zmin, logarithmic.zmax) == (0, 2)
    assert list(logarithmic.colorbar.ticktext) == ["0", "0.9", "0.99"]
    assert logarithmic.z[0][1] == pytest.approx(2)
    assert logarithmic.z[1][1] == 2  # the diagonal, which has infinitely many nines


@given(st.lists(st.floats(-0.2, 1.0), min_size=3, max_size=3))
def test_more_similar_is_never_darker_and_hover_says_the_similarity(values):
    a, b, c = values
    matrix = [[1.0, a, b], [a, 1.0, c], [b, c, 1.0]]
    for contrast in CONTRASTS:
        figure = similarity_heatmap(matrix, "CKA", contrast=contrast)
        z = figure.data[0].z
        pairs = sorted(zip(values, (z[0][1], z[0][2], z[1][2]), strict=True))
        assert [colour for _, colour in pairs] == sorted(colour for _, colour in pairs)
        assert figure.data[0].zmin < figure.data[0].zmax
        assert list(figure.data[1].customdata)[:3] == [1.0, round(a, 4), round(b, 4)]


def test_one_layer_and_equal_layers_can_be_drawn():
    for matrix in ([[1.0]], [[1.0, 1.0], [1.0, 1.0]]):
        for contrast in CONTRASTS:
            assert map_of(contrast, matrix).zmin < map_of(contrast, matrix).zmax


def test_maps_side_by_side_share_the_layer_axis_with_the_lines():
    other = [[1.0, 0.5, 0.4], [0.5, 1.0, 0.3], [0.4, 0.3, 1.0]]
    maps = [Map(MATRIX, "CKA", "one", [Window(0, 1)]), Map(other, "Cosine", "two")]
    lines = Lines("norm", {"mean": [1.0, 2.0, 3.0], "largest": [4.0, 5.0, 6.0]}, log=True)
    figure = maps_figure(maps, [lines], [Window(1, 2)], (0, 2))
    first, second = (trace for trace in figure.data if trace.type == "heatmap")
    assert [first.z[0][1], second.z[0][1]] == [0.99, 0.5]
    drawn = {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data if trace.name in lines.values}
    assert drawn == {"mean": ([1.0, 2.0, 3.0], [0, 1, 2]), "largest": ([4.0, 5.0, 6.0], [0, 1, 2])}
    assert [figure.layout[axis].matches for axis in ("yaxis2", "yaxis3")] == ["y", "y"]
    squares = [(shape.xref, shape.x0, shape.x1) for shape in figure.layout.shapes]
    dotted, outlined = [("x", -0.5, 1.5)] * 2, [("x", 0.5, 2.5)] * 2
    assert sorted(squares) == sorted([*dotted, *outlined, *(("x2", *ends) for _, *ends in outlined)])
    rings = [
        (trace.xaxis, trace.x, trace.y)
        for trace in figure.data
        if trace.type == "scatter" and trace.marker.symbol == "square-open"
    ]
    assert rings == [("x", (0, 2), (2, 0)), ("x2", (0, 2), (2, 0))]
    starts = [bar.colorbar.x for bar in (first, second)]
    assert starts == [figure.layout.xaxis.domain[0], figure.layout.xaxis2.domain[0]]  # each below its own map


def test_the_difference_of_two_maps_is_that_of_their_numbers_and_has_zero_in_the_middle():
    other = [[1.0, 0.5, 0.4], [0.5, 1.0, 0.3], [0.4, 0.3, 1.0]]
    figure = maps_figure([difference(Map(MATRIX, "CKA"), Map(other, "CKA"), "first minus second")])
    assert np.allclose(figure.data[0].z, np.array(MATRIX) - np.array(other))
    assert figure.data[0].zmin == -figure.data[0].zmax == pytest.approx(-0.49)
    same = maps_figure([difference(Map(MATRIX, "CKA"), Map(MATRIX, "CKA"), "")])
    assert same.data[0].zmin < same.data[0].zmax
