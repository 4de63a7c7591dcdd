"""The paired comparison against pencil and scipy."""

import math

import pytest
from scipy.stats import binomtest

from swm.paired import flipped, mcnemar, paired


def documents(**tasks):
    rows = {
        task: [
            {"id": f"{task}{i}", "correct": c, "question": f"q{i}", "right": "a", "picked": "ab"[1 - int(c)]}
            for i, c in enumerate(values)
        ]
        for task, values in tasks.items()
    }
    return {"tasks": rows}


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 3), (0, 5), (12, 2), (1, 0), (40, 25)])
def test_mcnemar_is_the_exact_binomial_test(gained, lost):
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)


def test_difference_interval_and_counts_by_pencil():
    first, second = documents(boolq=[1.0, 1.0, 0.0, 0.0]), documents(boolq=[1.0, 0.0, 1.0, 1.0])
    (one,) = paired(first, second)
    assert (one.documents, one.gained, one.lost, one.difference) == (4, 2, 1, 0.25)
    # changes 0, -1, 1, 1: mean 1/4, sample variance (1/16 + 25/16 + 9/16 + 9/16) / 3
    error = math.sqrt((1 + 25 + 9 + 9) / 16 / 3 / 4)
    assert (one.low, one.high) == pytest.approx((0.25 - 1.96 * error, 0.25 + 1.96 * error))
    assert one.p_value == 1.0
    assert one.is_noise


def test_a_clear_loss_is_no_noise_and_the_average_is_of_the_tasks():
    first = documents(boolq=[1.0] * 20, piqa=[1.0, 0.0] * 10)
    second = documents(boolq=[0.0] * 10 + [1.0] * 10, piqa=[1.0, 0.0] * 10)
    boolq, piqa, average = paired(first, second)
    assert (boolq.difference, boolq.is_noise) == (-0.5, False)
    assert (piqa.difference, piqa.p_value) == (0.0, 1.0)
    assert (average.task, average.difference, average.documents) == ("average", -0.25, 40)
    assert average.low < -0.25 < average.high < 0


def test_only_the_same_documents_are_compared():
    first, second = documents(boolq=[1.0, 0.0, 1.0]), documents(boolq=[1.0, 1.0], piqa=[1.0])
    assert [(one.task, one.documents) for one in paired(first, second)] == [("boolq", 2)]
    assert paired({}, second) == []


def test_flipped_documents_are_readable():
    first, second = documents(boolq=[1.0, 0.0, 1.0]), documents(boolq=[0.0, 1.0, 1.0])
    lost, gained = flipped(first, second)
    assert lost == {"task": "boolq", "verdict": "lost", "question": "q0", "right": "a", "first": "a", "second": "b"}
    assert gained["verdict"] == "gained"
