"""Several processes score windows ahead of the walk: the path must not show it, and the rounds must become few."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swm.errors import PlanError
from swm.search.find import ONE_BY_ONE, Batches, confirmed_plan, extended, find_plan
from swm.search.threshold_path import ThresholdPath
from tests.search.test_find import bounded, seeded_score


def recorded(score, rounds):
    """Scores keys in rounds and writes the rounds down."""

    def apart(keys):
        assert len(set(keys)) == len(keys)
        rounds.append(keys)
        return [score(*key) for key in keys]

    return apart


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    layer_count=st.integers(3, 9),
    low=st.floats(0.3, 0.95),
    most=st.integers(1, 9),
    focus=st.floats(0.3, 1.0),
    quick=st.booleans(),
    layers=st.none() | st.integers(2, 8),
)
def test_the_table_is_that_of_one_window_after_the_other(seed, layer_count, low, most, focus, quick, layers):
    """Including the bounds that a quick walk left before."""
    score, rounds, found = seeded_score(seed), [], []
    for batches in (ONE_BY_ONE, Batches(most, apart=recorded(score, rounds))):
        path = ThresholdPath(layer_count, "rdsc", low)
        if quick:
            path.extend_quickly(focus, bounded(score))
        extended(path, score, focus=focus, layers=layers, batches=batches)
        found.append((path.similarities, path.bounds))
    assert found[0] == found[1]
    assert all(len(keys) <= most for keys in rounds)


def test_a_walk_on_which_all_fail_takes_an_eighth_of_the_rounds():
    """Windows 28-27, 27-26 and so on to 1-0: each is tried because the one before failed."""
    rounds = []
    score = recorded(lambda above, window: 0.1, rounds)
    path = extended(ThresholdPath(30, low=0.9), None, batches=Batches(8, apart=score))
    assert len(path.similarities) == 28
    assert [len(keys) for keys in rounds] == [8, 8, 8, 4]


def test_scores_that_were_not_needed_are_dropped():
    """All windows pass: only those that grow from the top are needed, and each round scored others as well."""
    rounds = []
    score = recorded(lambda above, window: 1.0, rounds)
    path = extended(ThresholdPath(6, low=0.9), None, batches=Batches(3, apart=score))
    assert [str(window) for _, window in path.similarities] == ["3-4", "2-4", "1-4", "0-4"]
    assert sum(map(len, rounds)) > 4


def test_a_window_that_overflows_ends_the_search_only_if_a_walk_needs_it():
    """Layers 1-2 are never tried alone, because all windows above pass."""

    def score(above, window):
        return float("nan") if str(window) == "1-2" else similarity

    similarity = 1.0
    rounds = []
    path = extended(ThresholdPath(6, low=0.9), None, batches=Batches(8, apart=recorded(score, rounds)))
    assert "1-2" in [str(window) for _, window in rounds[0]]
    assert [str(window) for _, window in path.similarities] == ["3-4", "2-4", "1-4", "0-4"]
    similarity = 0.1
    with pytest.raises(PlanError, match="layers 1-2 merged"):
        extended(ThresholdPath(6, low=0.9), None, batches=Batches(8, apart=recorded(score, [])))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), focus=st.floats(0.4, 1.0))
def test_a_path_confirmed_last_has_no_holes_once_it_is_filled_again(seed, focus):
    """Exact similarities near the focus can lead to windows that the approximate ones did not."""
    exact = seeded_score(seed)
    fast = lambda above, window: exact(above, window) + 0.001 * math.sin(hash((above, window)))  # noqa: E731
    path = ThresholdPath(8, "rdsc", 0.4, scoring="bfloat16")
    extended(path, None, batches=Batches(8, apart=recorded(fast, [])))
    step = confirmed_plan(path, focus, lambda above, window, needed: fast(above, window), exact)
    extended(path, None, batches=Batches(8, apart=recorded(fast, [])))
    assert path.covered() == pytest.approx(1, abs=1e-9)
    assert step.plan == find_plan(8, exact, focus, rule="rdsc")
    assert path.plan_at(focus).plan == step.plan
