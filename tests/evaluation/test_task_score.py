"""Tests of swm.evaluation.task_score."""

import pytest
from scipy.stats import binomtest, norm

from swm.evaluation.task_score import standard_error


@pytest.mark.parametrize(("right", "of"), [(1, 1), (4, 4), (0, 5), (100, 100)])
def test_no_score_is_without_an_error(right, of):
    wilson = binomtest(right, of).proportion_ci(method="wilson")
    expected = (wilson.high - wilson.low) / 2 / norm.ppf(0.975)
    assert standard_error([1.0] * right + [0.0] * (of - right)) == pytest.approx(expected, rel=1e-4)
