"""The walk's positions and ranges against all walks there are, written out here without the engine."""

import math
from itertools import product

import pytest

from swm.errors import SettingsError
from swm.search.walk import Position, check_range, walk_at


def layers_left_by_every_walk(low, high, layers):
    """Layer counts in which a walk can end that now tries the window low..high, whatever the similarities are."""
    if low < 0:
        return {layers}
    passed = layers_left_by_every_walk(low - 1, high, layers - 1)  # one layer fewer
    failed = layers_left_by_every_walk(low - 1, low, layers)
    return passed | failed


@pytest.mark.parametrize(("low", "high"), [(-1, 0), (0, 1), (2, 3), (1, 4), (0, 5), (3, 4)])
def test_a_walk_can_leave_the_layer_counts_that_some_walk_from_there_leaves(low, high):
    # Of 9 layers, high - low - 1 are merged away in the window that is open.
    position, reached = Position((), high, low), layers_left_by_every_walk(low, high, 9 - (high - low - 1))
    assert {layers for layers in range(-2, 12) if position.can_leave(layers, 9)} == reached


@pytest.mark.parametrize("verdicts", list(product([True, False], repeat=3)))
def test_the_thresholds_that_walk_the_same_way_end_at_the_nearest_similarities(verdicts):
    # 4 layers, none protected: three windows are tried whatever comes; 0.9, 0.8, 0.7 pass at 0.6, the others fail.
    passing, failing = iter([0.9, 0.8, 0.7]), iter([0.1, 0.3, 0.2])
    given = [next(passing) if verdict else next(failing) for verdict in verdicts]
    answers = iter(given)
    walk = walk_at(4, 0, 0.6, lambda above, window: next(answers))
    assert walk.complete
    assert [trial.accepted for trial in walk.trace] == list(verdicts)
    assert walk.high == min((s for s in given if s >= 0.6), default=math.inf)
    assert walk.low == max((s for s in given if s < 0.6), default=-math.inf)


def test_a_walk_ends_at_the_first_similarity_that_is_not_known():
    walk = walk_at(5, 1, 0.9, lambda above, window: None)
    assert not walk.complete
    assert (walk.trace, walk.position) == ([], Position((), 3, 2))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0.5, 0.5, "--from 0.5 must be below the upper end of the path, 0.5"),
        (0.9, 0.5, "--from 0.9 must be below the upper end of the path, 0.5"),
        (0.5, 1.5, "Threshold 1.5 is out of range: use a value above 0"),
        (0.0, 0.5, "Threshold 0.0 is out of range: use a value above 0"),
    ],
)
def test_a_range_without_thresholds_in_it_is_refused(low, high, message):
    with pytest.raises(SettingsError, match=message):
        check_range(low, high)


def test_a_range_up_to_one_is_accepted_and_one_is_its_default_end():
    check_range(0.999)
    with pytest.raises(SettingsError, match="--from 1 must be below the upper end of the path, 1"):
        check_range(1.0)
