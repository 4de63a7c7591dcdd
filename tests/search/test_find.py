"""The walk is checked against pencil and paper, the path against the plain search at many thresholds."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swm.errors import PlanError, SettingsError
from swm.plan import Window
from swm.search.find import Batches, confirmed_plan, extended, find_plan, threshold_path
from swm.search.kept_path import path_data, path_from
from swm.search.threshold_path import ThresholdPath


def scripted(table):
    """Score from a table {(first, last): similarity}; whatever is not in it is rejected."""
    return lambda above, window: table.get((window.first, window.last), 0.0)


def seeded_score(seed):
    """A different but repeatable similarity for every (windows above, window), in steps so that ties happen."""

    def score(above, window):
        rng = random.Random(f"{seed}:{[(w.first, w.last) for w in above]}:{window.first}:{window.last}")
        return round(max(0.0, min(1.0, 1.05 - 0.06 * len(window) - 0.05 * len(above) + rng.uniform(-0.25, 0.1))), 2)

    return score


def bounded(score):
    """The same as a quick score: below what is needed some bound between the similarity and that."""

    def quick(above, window, needed):
        similarity = score(above, window)
        return similarity if similarity >= needed else similarity + 0.9 * (needed - similarity) * (len(window) % 2)

    return quick


def test_window_grows_until_the_threshold_fails_and_the_failing_layer_starts_the_next():
    # Layers 0-5, 5 protected. 3-4 and 2-4 pass, 1-4 fails: commit 2-4. Layer 1 starts a new window: 0-1 passes, commit.
    tried = []

    def score(above, window):
        tried.append((len(above), str(window)))
        return {"3-4": 0.99, "2-4": 0.95, "1-4": 0.80, "0-1": 0.93}[str(window)]

    plan = find_plan(6, score, 0.9)
    assert plan.windows == (Window(0, 1), Window(2, 4))
    assert tried == [(0, "3-4"), (0, "2-4"), (0, "1-4"), (1, "0-1")]


def test_when_nothing_was_accepted_the_window_moves_down_by_one():
    assert find_plan(5, scripted({(1, 2): 0.95}), 0.9).windows == (Window(1, 2),)


def test_similarity_equal_to_the_threshold_is_accepted():
    assert find_plan(3, scripted({(0, 1): 0.9}), 0.9).windows == (Window(0, 1),)
    assert find_plan(3, scripted({(0, 1): math.nextafter(0.9, 0)}), 0.9).windows == ()


def test_always_accepting_commits_one_window_at_the_bottom():
    # The released code loses the window that is open at the bottom and so merges nothing.
    assert find_plan(8, lambda above, window: 1.0, 0.5).windows == (Window(0, 6),)


def test_always_rejecting_merges_nothing():
    assert find_plan(8, lambda above, window: 0.1, 0.5).windows == ()


def test_a_window_of_one_layer_is_never_tried():
    sizes = []
    find_plan(12, lambda above, window: sizes.append(len(window)) or random.Random(window.first).random(), 0.5)
    assert min(sizes) == 2


def test_nan_is_an_error_that_names_the_layers():
    with pytest.raises(PlanError, match="2-3"):
        find_plan(5, lambda above, window: math.nan, 0.9)
    with pytest.raises(PlanError, match="2-3"):
        threshold_path(5, lambda above, window: math.nan, 0.5)


def test_protected_layers_are_in_no_window():
    plan = find_plan(8, lambda above, window: 1.0, 0.5, protect_last=3)
    assert plan.windows == (Window(0, 4),)
    assert find_plan(2, lambda above, window: 1.0, 0.5).windows == ()


@pytest.mark.parametrize("threshold", [0, -1, 1.0001, math.nan, math.inf])
def test_a_threshold_outside_0_to_1_is_refused(threshold):
    with pytest.raises(SettingsError, match="use a value above 0 and at most 1"):
        find_plan(4, lambda above, window: 1.0, threshold)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), layers=st.integers(2, 12), protect=st.integers(0, 2))
def test_the_path_gives_the_plain_search_at_every_threshold(seed, layers, protect):
    score, low = seeded_score(seed), 0.4
    path = threshold_path(layers, score, low, protect_last=protect)
    thresholds = [low, 1.0, *(random.Random(seed).uniform(low, 1) for _ in range(20)), *path.similarities.values()]
    for threshold in (t for t in thresholds if low <= t <= 1):
        step = path.plan_at(threshold)
        assert step.plan == find_plan(layers, score, threshold, protect)
        assert step.low <= threshold <= step.high
        # Both ends of the interval give the same plan; the low end belongs to the next walk, so look just above it.
        assert path.plan_at(step.high).plan == step.plan
        inside = math.nextafter(step.low, 1.0)
        if inside <= step.high:
            assert path.plan_at(inside).plan == step.plan


def test_intervals_cover_the_whole_range_without_a_gap():
    path = threshold_path(9, seeded_score(3), 0.5)
    steps = path.intervals()
    assert steps[0].high == 1.0
    assert steps[-1].low <= 0.5 < steps[-1].high
    assert all(upper.low == lower.high for upper, lower in zip(steps, steps[1:], strict=False))
    assert path.covered() == pytest.approx(1.0)


def test_each_similarity_is_computed_once_and_the_focus_comes_first():
    calls, complete_after = [], []
    score = seeded_score(5)

    def counted(above, window):
        calls.append((above, window))
        return score(above, window)

    def watch(path, covered):
        if path.plan_at(0.72) is not None:
            complete_after.append(len(calls))

    extended(ThresholdPath(10, low=0.4), counted, focus=0.72, on_step=watch)
    assert len(calls) == len(set(calls))
    plain = []
    find_plan(10, lambda above, window: plain.append(window) or score(above, window), 0.72)
    assert complete_after[0] == len(plain)


def test_an_interrupted_path_goes_on_where_it_stopped():
    score, calls = seeded_score(8), []

    class Stop(Exception):
        pass

    def until_ten(above, window):
        if len(calls) == 10:
            raise Stop
        calls.append((above, window))
        return score(above, window)

    half = ThresholdPath(10, low=0.4)
    with pytest.raises(Stop):
        extended(half, until_ten)
    assert len(half.similarities) == 10
    assert 0 <= half.covered() < 1
    restored = path_from(json.loads(json.dumps(path_data(half))))
    more = []
    whole = extended(restored, lambda a, w: more.append((a, w)) or score(a, w))
    assert not set(calls) & set(more)
    assert whole.similarities == threshold_path(10, score, 0.4).similarities


def test_the_trace_tells_each_window_with_its_verdict():
    path = threshold_path(4, scripted({(1, 2): 0.95, (0, 2): 0.7}), 0.5)
    step = path.plan_at(0.9)
    assert [(str(t.window), t.similarity, t.accepted) for t in step.trace] == [("1-2", 0.95, True), ("0-2", 0.7, False)]
    assert (step.low, step.high, step.similarity) == (0.7, 0.95, 0.95)


def test_a_plan_is_one_walk_through_the_table_however_long_it_is():
    path = threshold_path(80, lambda above, window: 1 - 0.02 * len(window) - 0.01 * len(above), 0.9)

    class Counted(dict):
        read = 0

        def get(self, key, default=None):
            Counted.read += 1
            return super().get(key, default)

    path.similarities = Counted(path.similarities)
    step = path.plan_at(0.93)
    assert len(path.similarities) > 300
    assert Counted.read == len(step.trace) == 78  # one window for each layer below the last two


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.floats(0.4, 1.0))
def test_a_plan_from_scores_with_noise_is_settled_to_the_exact_plan(seed, threshold):
    exact = seeded_score(seed)

    def noise(above, window):
        return min(1.0, exact(above, window) + 0.004 * math.sin(hash((seed, window.first, window.last, len(above)))))

    noisy = bounded(noise)
    path, asked = ThresholdPath(10), []

    def counted(above, window):
        asked.append((above, window))
        return exact(above, window)

    step = confirmed_plan(path, threshold, noisy, counted)
    assert len(asked) == len(set(asked))
    if path.difference > 0.001:  # the error was seen, so it was allowed for
        assert step.plan == find_plan(10, exact, threshold)
    assert path.difference <= 0.004


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.floats(0.4, 1.0), other=st.floats(0.4, 1.0))
def test_bounds_give_the_same_plan_and_only_for_the_thresholds_they_settle(seed, threshold, other):
    exact = seeded_score(seed)
    path = ThresholdPath(10, low=0.4)
    step = path.extend_quickly(threshold, bounded(exact))
    assert step.plan == find_plan(10, exact, threshold)
    assert all(trial.at_most != trial.accepted for trial in step.trace)
    for t in (other, step.low, step.high):
        if t > 0 and (found := path.plan_at(t)):
            assert found.plan == find_plan(10, exact, t)
    assert path_from(json.loads(json.dumps(path_data(path)))) == path
    whole = extended(path, exact)
    assert not whole.bounds & {key for key in whole.similarities if exact(*key) > 0.4}
    assert whole.plan_at(other).plan == find_plan(10, exact, other)
    assert whole.covered() == pytest.approx(1)


def test_a_bound_is_never_taken_for_a_similarity():
    path = ThresholdPath(4)
    step = path.extend_quickly(0.9, lambda above, window, needed: 0.85)
    assert (step.low, step.high) == (0.85, 1.0)
    assert path.plan_at(0.85) is None
    assert path.plan_at(0.86).trace[0].at_most
    path.extend(0.85, lambda above, window: 0.7)
    assert path.plan_at(0.85).low == 0.7


def test_of_several_plans_of_a_depth_the_one_of_lowest_perplexity_is_taken():
    path = threshold_path(9, seeded_score(3), 0.3)
    by_depth = {}
    for step in path.intervals():
        by_depth.setdefault(step.plan.layers_left, {}).setdefault(step.plan.windows, step)
    layers, plans = max(by_depth.items(), key=lambda item: len(item[1]))
    assert len(plans) > 1
    assert path.plan_with_layers(layers).similarity == max(step.similarity for step in plans.values())
    for rank, windows in enumerate(plans):
        path.perplexities[windows] = 50.0 - rank
    chosen = path.plan_with_layers(layers)
    assert chosen.plan.windows == list(plans)[-1]
    assert path_from(json.loads(json.dumps(path_data(path)))) == path


@pytest.mark.parametrize("seed", range(8))
def test_a_search_for_one_depth_finds_all_its_plans_and_tries_less(seed):
    score, tried = seeded_score(seed), []
    whole = threshold_path(12, score, 0.3)
    for layers in range(2, 13):
        path = extended(ThresholdPath(12, low=0.3), score, layers=layers)
        assert not ThresholdPath(12, low=0.3).knows_all_with(layers)
        assert path.knows_all_with(layers)
        found, all_found = (
            [step for step in one.intervals() if step.plan.layers_left == layers] for one in (path, whole)
        )
        assert found == all_found
        if found:
            assert path.plan_with_layers(layers) == whole.plan_with_layers(layers)
        else:
            with pytest.raises(PlanError, match=f"leaves exactly {layers} layers"):
                path.plan_with_layers(layers)
        tried.append(len(path.similarities))
    assert min(tried) < 0.7 * len(whole.similarities)


def test_a_threshold_outside_the_path_is_known_or_none():
    path = threshold_path(4, lambda above, window: 0.45, 0.5)
    assert path.plan_at(0.46).plan.windows == ()
    assert path.plan_at(0.4) is None
    path.extend(0.4, lambda above, window: 0.45)
    assert path.plan_at(0.4).plan.windows == (Window(0, 2),)
    assert path.covered() == pytest.approx(1)
    assert ThresholdPath(4, low=1.0).covered() == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_path_scored_in_batches_is_the_same_path(seed):
    score, batches = seeded_score(seed), []

    def together(above, windows):
        batches.append(len(windows))
        return [score(above, window) for window in windows]

    one_by_one = threshold_path(12, score, 0.5)
    batched = extended(ThresholdPath(12), score, batches=Batches(4, together))
    assert batched.intervals() == one_by_one.intervals()
    assert one_by_one.similarities.items() <= batched.similarities.items()
    assert max(batches) <= 4
    assert sum(batches) > 0.3 * len(batched.similarities)
