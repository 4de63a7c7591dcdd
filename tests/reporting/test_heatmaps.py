"""The colours of a heat map: numbers from pencil, whatever the contrast."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swm.reporting.heatmaps import (
    CONTRASTS,
    FULL,
    LOGARITHMIC,
    STRETCHED,
    beside,
    difference_heatmap,
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


def test_maps_beside_each_other_have_their_bars_below_with_their_own_names():
    values = [[1.0, 0.5], [0.5, 1.0]]
    maps = [similarity_heatmap(values, name) for name in ("CKA", "Cosine")]
    maps.append(difference_heatmap(values, values, ""))
    bars = [beside(figure).data[0].colorbar for figure in maps]
    assert [bar.title.text for bar in bars] == ["CKA", "Cosine", "difference"]
    assert {bar.orientation for bar in bars} == {"h"}  # beside a map, its labels' width would take from the map's
    assert len({(figure.layout.height, figure.layout.margin.r) for figure in maps}) == 1
