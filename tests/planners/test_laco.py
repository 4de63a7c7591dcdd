"""Tests of swm.planners.laco."""

import pytest

from swm.errors import PlanError
from swm.plan import MergePlan, Window
from swm.planners.laco import laco_plan


def test_laco_merges_from_the_top_and_goes_on_below_a_merge():
    # 10 layers, windows of 3. From the top: 7-9 is alike enough, then 4-6 is not, 3-5 is; below it nothing is.
    alike = {((), (7, 9)): 0.9, (((7, 9),), (4, 6)): 0.5, (((7, 9),), (3, 5)): 0.8}
    tried = []

    def similarity(above, window):
        tried.append((above, window))
        return alike.get((tuple((w.first, w.last) for w in above), (window.first, window.last)), 0.1)

    plan = laco_plan(10, 6, similarity, lambda done, total: None)
    assert plan == MergePlan(10, (Window(3, 5), Window(7, 9)), "rdsc")
    assert all(window.first >= 1 for _, window in tried)
    assert {len(window) for _, window in tried} == {3, 5}  # windows of 4 or 6 never leave 6 layers
    assert len(tried) == len(set(tried))
    assert laco_plan(10, 8, similarity, lambda done, total: None).windows == (Window(7, 9),)
    with pytest.raises(PlanError, match="LaCo cannot leave 9 of 10 layers with windows of 3 to 6 layers"):
        laco_plan(10, 9, similarity, lambda done, total: None)
    with pytest.raises(PlanError, match="and a similarity above 0"):
        laco_plan(10, 8, lambda above, window: -0.1, lambda done, total: None)


def test_laco_takes_the_highest_threshold_of_all_sizes():
    # 6 of 10 layers: two windows of 3 at 0.4, or one of 5 at 0.6.
    def similarity(above, window):
        return {3: 0.4, 5: 0.6}[len(window)] if len(above) < 2 else 0.0

    assert laco_plan(10, 6, similarity, lambda done, total: None).windows == (Window(5, 9),)


def test_laco_tries_every_threshold_that_changes_its_walk():
    alike = {Window(7, 9): 0.804, Window(6, 8): 0.808, Window(5, 7): 0.802}  # all accepted at 0.80

    def similarity(above, window):
        return 0.5 if above else alike.get(window, 0.5)

    assert laco_plan(10, 8, similarity, lambda done, total: None).windows == (Window(6, 8),)
