"""The order of the search, its share done and its batches, by pencil on models of three to six layers."""

import pytest

from swm.plan import Window
from swm.search.find import Batches, confirmed_plan, extended, threshold_path
from swm.search.threshold_path import ThresholdPath


def scripted(table, tried=None):
    """Score from a table {"first-last": similarity}; writes down what is asked."""

    def score(above, window):
        if tried is not None:
            tried.append(str(window))
        return table[str(window)]

    return score


def test_the_share_done_is_the_width_of_the_thresholds_whose_walks_have_ended():
    # 4 layers, one protected, thresholds 0.5 to 1. 1-2 gets 0.7: above that 0-1 is tried, a new window, which
    # ends all walks above 0.7, three fifths of the range; then 0-2 for the rest.
    seen, tried = [], []
    score = scripted({"1-2": 0.7, "0-1": 0.9, "0-2": 0.6}, tried)
    path = extended(ThresholdPath(4), score, on_step=lambda path, share: seen.append(share))
    assert tried == ["1-2", "0-1", "0-2"]
    assert seen == pytest.approx([0.0, 0.0, 0.6])
    assert path.covered() == pytest.approx(1)


@pytest.mark.parametrize(
    ("focus", "second"),
    [(0.55, "1-3"), (0.69, "1-3"), (0.71, "1-2"), (0.95, "1-2"), (None, "1-2"), (0.2, "1-3"), (3.0, "1-2")],
)
def test_the_walks_of_the_thresholds_looked_at_come_first(focus, second):
    # 2-3 gets 0.7 of 5 layers: thresholds up to 0.7 go on with 1-3, those above with 1-2.
    tried = []
    score = scripted({"2-3": 0.7, "1-3": 0.65, "1-2": 0.8, "0-3": 0.6, "0-1": 0.9, "0-2": 0.75}, tried)
    threshold_path(5, score, 0.5, focus=focus)
    assert tried[:2] == ["2-3", second]


def test_of_two_walks_that_meet_at_the_focus_the_one_that_holds_it_comes_first():
    tried = []
    score = scripted({"2-3": 0.7, "1-3": 0.65, "1-2": 0.8, "0-3": 0.6, "0-1": 0.9, "0-2": 0.75}, tried)
    threshold_path(5, score, 0.5, focus=0.7)  # a threshold of 0.7 accepts 2-3
    assert tried[:2] == ["2-3", "1-3"]


def test_of_walks_that_do_not_hold_the_focus_the_nearest_comes_first():
    # 5 layers, thresholds 0.5 to 1, focus 0.95. 2-3 gets 0.9: its walks above 0.9 go on and end with 1-2 and 0-1. Left
    # are those up to 0.9, of which 1-3 (0.6) makes (0.5, 0.6] with 0-3 and (0.6, 0.9] with 0-1; 0.9 is nearer to 0.95.
    tried = []
    score = scripted({"2-3": 0.9, "1-2": 0.1, "0-1": 0.1, "1-3": 0.6, "0-3": 0.55}, tried)
    threshold_path(5, score, 0.5, focus=0.95)
    assert tried == ["2-3", "1-2", "0-1", "1-3", "0-1", "0-3"]
    # Focus 0.55, and 0.6 is nearer than 0.9.
    tried.clear()
    threshold_path(
        5, scripted({"2-3": 0.6, "1-3": 0.6, "0-3": 0.6, "1-2": 0.9, "0-1": 0.1, "0-2": 0.8}, tried), 0.5, focus=0.55
    )
    assert tried == ["2-3", "1-3", "0-3", "1-2", "0-2", "0-1"]


def test_of_walks_on_both_sides_of_the_focus_the_nearer_one_comes_first():
    # Focus 0.7. 2-3 gets 0.6 and 1-2 gets 0.85: the walks between end with 0-2. Left are those up to 0.6, which go on
    # with 1-3 and are 0.1 away, and those above 0.85, which are 0.15 away.
    tried = []
    score = scripted({"2-3": 0.6, "1-2": 0.85, "0-2": 0.3, "1-3": 0.1, "0-1": 0.1}, tried)
    threshold_path(5, score, 0.5, focus=0.7)
    assert tried[:4] == ["2-3", "1-2", "0-2", "1-3"]


def together_of(score, asked):
    def together(above, windows):
        asked.append([str(window) for window in windows])
        return [score(above, window) for window in windows]

    return together


def test_windows_are_scored_together_when_two_or_more_wait_and_alone_when_one_does():
    # All fail: below 2-3 wait 1-2 and 0-1. By twos: 2-3 with 1-2, then 0-1 alone.
    alone, asked = [], []
    score = scripted({"2-3": 0.1, "1-2": 0.1, "0-1": 0.1})
    counted = scripted({"2-3": 0.1, "1-2": 0.1, "0-1": 0.1}, alone)
    path = extended(ThresholdPath(5), counted, batches=Batches(2, together_of(score, asked)))
    assert (asked, alone) == ([["2-3", "1-2"]], ["0-1"])
    assert len(path.similarities) == 3


def test_too_few_similarities_for_a_batch_are_an_error():
    with pytest.raises(ValueError, match="shorter"):
        extended(ThresholdPath(5), None, batches=Batches(2, lambda above, windows: [0.1]))


def test_settling_keeps_the_largest_difference_seen_and_tells_each_step():
    # 5 layers at 0.9. Quick similarities lie 0.0004, 0.0010 and 0.0001 off, all so near that each is computed exactly.
    quick = {"2-3": 0.9004, "1-3": 0.8990, "0-1": 0.9009}
    exact = {"2-3": 0.9008, "1-3": 0.8980, "0-1": 0.9010}
    path, steps, asked = ThresholdPath(5, scoring="bfloat16"), [], []

    def quickly(above, window, needed):
        asked.append((str(window), needed))
        return quick[str(window)]

    step = confirmed_plan(path, 0.9, quickly, scripted(exact), on_step=steps.append)
    assert step.plan.windows == (Window(0, 1), Window(2, 3))
    assert step.similarity == 0.9010
    assert path.difference == pytest.approx(0.001)
    assert {(str(window), path.similarities[above, window]) for above, window in path.sure} == set(exact.items())
    # Each is scored quickly once: what fails by no more than the doubt, 0.002, is no bound.
    assert asked == [(window, pytest.approx(0.898)) for window in quick]
    assert steps == [2, 3, 4]  # layers below the top one that have been tried, of the window's first


def test_no_window_is_scored_for_an_interval_without_thresholds():
    # 2-3 and 1-2 both get 0.7 of 5 layers. Above 0.7 neither passes, so 0-2, which follows 1-2, is on nobody's way.
    tried = []
    score = scripted({"2-3": 0.7, "1-2": 0.7, "0-1": 0.1, "1-3": 0.1}, tried)
    path = threshold_path(5, score, 0.5)
    assert sorted(tried) == ["0-1", "0-1", "1-2", "1-3", "2-3"]  # 0-1 alone, and with 2-3 merged above
    assert path.covered() == pytest.approx(1)
    # What gets 1 passes at every threshold: 1-2 and 0-1 alone are not tried.
    tried.clear()
    threshold_path(5, scripted({"2-3": 1.0, "1-3": 1.0, "0-3": 1.0}, tried), 0.5)
    assert tried == ["2-3", "1-3", "0-3"]


def test_of_a_bound_the_quick_similarity_is_asked_for_before_it_is_compared_with_the_exact_one():
    # 1-2 seems to fail by far, 0-1 by 0.0005; once that is found to be off by 0.02, 1-2 is in doubt as well: 5 * 0.02.
    quick, exact, asked = {"1-2": 0.85, "0-1": 0.8995}, {"1-2": 0.86, "0-1": 0.8795}, []

    def quickly(above, window, needed):
        asked.append((str(window), needed))
        return quick[str(window)] if needed < 0 else quick[str(window)] + 0.02 * (str(window) == "1-2")

    path = ThresholdPath(4, scoring="bfloat16")
    step = confirmed_plan(path, 0.9, quickly, scripted(exact))
    assert step.plan.windows == ()
    assert [(window, needed) for window, needed in asked if needed < 0] == [("1-2", -1.0)]
    assert {str(window): value for (_, window), value in path.similarities.items()} == exact
    assert path.difference == pytest.approx(0.02)
    assert not path.bounds


def test_a_new_path_has_the_range_rule_and_protected_layers_that_were_asked_for():
    path = threshold_path(6, lambda above, window: 0.1, 0.4, 0.8, protect_last=2, rule="mean")
    assert (path.low, path.high, path.protect_last, path.rule, path.layer_count) == (0.4, 0.8, 2, "mean", 6)
    assert {str(window) for _, window in path.similarities} == {"2-3", "1-2", "0-1"}


def test_windows_are_scored_alone_unless_a_number_at_once_is_given():
    path = extended(
        ThresholdPath(5), lambda above, window: 0.1, batches=Batches(1, lambda *_: pytest.fail("not asked for"))
    )
    assert len(path.similarities) == 3  # 2-3, 1-2 and 0-1, each by itself
