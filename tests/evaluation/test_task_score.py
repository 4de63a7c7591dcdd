"""Tests of swm.evaluation.task_score."""

import pytest
from scipy.stats import binomtest, norm

from swm.evaluation.task_score import standard_error


@pytest.mark.parametrize(("right", "of"), [(1, 1), (4, 4), (0, 5), (100, 100)])
def test_no_score_is_without_an_error(right, of):
    wilson = binomtest(right, of).proportion_ci(method="wilson")
    expected = (wilson.high - wilson.low) / 2 / norm.ppf(0.975)
    assert standard_error([1.0] * right + [0.0] * (of - right)) == pytest.approx(expected, rel=1e-4)


def test_an_empty_choice_divides_by_nothing():
    from swm.evaluation.task_score import score_of

    sample = {
        "doc_id": 0, "doc_hash": "a", "doc": {}, "filter": "none", "target": "1", "acc_norm": 1.0,
        "arguments": [("The end", " "), ("The end", " of it")], "filtered_resps": [(-1.0, False), (-2.0, False)],
    }  # fmt: skip
    results = {"results": {"own": {"acc_norm,none": 1.0}}, "samples": {"own": [sample]}, "versions": {}}
    score = score_of("own", results)
    assert score.answers[0]["choices"] == ["", "of it"]
    assert score.answers[0]["picked"] == "of it"
