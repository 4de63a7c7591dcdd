"""Means over runs, averages of tasks and flipped answers, by pencil and scipy."""

import math

import pytest
from scipy.stats import norm

from swm.evaluation.paired import VERDICTS, Paired, flipped, mean_answers, paired


def answers(**tasks):
    """What documents.json says: by task, answers by the document's id."""
    return {
        "tasks": {
            task: [
                {"id": i, "correct": c, "question": f"q{i}", "right": "a", "picked": f"{task}-{c}"}
                for i, c in rows.items()
            ]
            for task, rows in tasks.items()
        }
    }


def test_one_run_is_its_own_mean_as_it_is():
    run = answers(boolq={1: 1.0})
    assert mean_answers([run]) is run


def test_the_mean_of_runs_is_that_of_each_document_which_all_of_them_saw():
    runs = [
        answers(boolq={1: 1.0, 2: 0.0, 3: 1.0, 4: 1.0}, piqa={1: 1.0}),
        answers(boolq={2: 1.0, 1: 1.0, 3: 0.0}, piqa={1: 0.0}),
        answers(boolq={1: 0.0, 2: 1.0, 3: 0.0, 5: 1.0}, arc={1: 1.0}),
    ]
    assert mean_answers(runs) == {
        "tasks": {
            "boolq": [
                {"id": 1, "correct": pytest.approx(2 / 3)},
                {"id": 2, "correct": pytest.approx(2 / 3)},
                {"id": 3, "correct": pytest.approx(1 / 3)},
            ],
            "piqa": [],  # the third run has no such task
        }
    }
    assert mean_answers([{}, runs[0]]) == {"tasks": {}}
    assert mean_answers([runs[0], {}])["tasks"] == {"boolq": [], "piqa": []}


def test_a_task_of_means_has_students_error_in_the_average_of_tasks():
    # boolq changes by 1/2, 0, 0, 1/2: mean 1/4, variance 1/12, error sqrt(1/12 / 4). piqa: 3 of 4 gained.
    first = answers(boolq={1: 0.0, 2: 0.5, 3: 1.0, 4: 0.5}, piqa=dict.fromkeys(range(4), 0.0))
    second = answers(boolq={1: 0.5, 2: 0.5, 3: 1.0, 4: 1.0}, piqa={0: 1.0, 1: 1.0, 2: 1.0, 3: 0.0})
    boolq, piqa, average = paired(first, second)
    assert (boolq.difference, boolq.gained, boolq.lost, piqa.difference) == (0.25, 2, 0, 0.75)
    assert (average.difference, average.gained, average.lost, average.documents) == (0.5, 5, 0, 8)
    errors = [math.sqrt(1 / 12 / 4), math.sqrt(3 + 1 - 3**2 / 6) / 6]  # Student; Bonett and Price
    error = math.hypot(*errors) / 2
    assert average.high - average.difference == pytest.approx(norm.ppf(0.975) * error)
    assert average.difference - average.low == pytest.approx(norm.ppf(0.975) * error)
    assert average.p_value == pytest.approx(2 * norm.sf(0.5 / error))


@pytest.mark.parametrize("change", [0.5, 0.25])
def test_means_that_all_change_alike_say_nothing_and_count_as_half_a_document_of_noise(change):
    before, after = dict.fromkeys(range(4), 0.0), dict.fromkeys(range(4), change)
    boolq, same, average = paired(answers(boolq=before, piqa=before), answers(boolq=after, piqa=before))
    assert (boolq.low, boolq.high, boolq.p_value) == (-1.0, 1.0, 1.0)
    assert (same.low, same.high) == pytest.approx((-(1 - 0.025**0.25), 1 - 0.025**0.25))
    error = math.hypot(1 / 6, 1 / 6) / 2  # 1 / (n + 2) of each
    assert average.high - average.low == pytest.approx(2 * norm.ppf(0.975) * error)


def test_a_single_document_of_means_has_no_spread():
    (one,) = paired(answers(boolq={1: 0.5}), answers(boolq={1: 0.25}))
    assert (one.difference, one.low, one.high, one.p_value) == (-0.25, -1.0, 1.0, 1.0)
    assert (one.gained, one.lost) == (0, 1)


def test_an_average_has_the_fewest_documents_of_its_tasks_and_there_is_none_of_one():
    first = answers(boolq=dict.fromkeys(range(40), 1.0), piqa=dict.fromkeys(range(29), 1.0))
    assert [(one.task, one.fewest, one.verdict) for one in paired(first, first)] == [
        ("boolq", 40, "not significant"),
        ("piqa", 29, "too few documents"),
        ("average", 29, "too few documents"),
    ]
    assert len(paired(first, answers(boolq={0: 1.0}))) == 1
    assert paired(first, {}) == paired({}, first) == []


@pytest.mark.parametrize(
    ("fewest", "p_value", "difference", "verdict"),
    [
        (30, 0.049, 0.1, "better"),
        (30, 0.049, -0.1, "worse"),
        (30, 0.05, 0.1, "not significant"),
        (29, 0.001, 0.1, "too few documents"),
        (29, 0.9, 0.1, "too few documents"),
    ],
)
def test_a_verdict_needs_thirty_documents_and_a_p_value_below_a_twentieth(fewest, p_value, difference, verdict):
    assert Paired("boolq", 100, difference, -0.2, 0.2, p_value, 1, 1, fewest).verdict == verdict
    assert verdict in VERDICTS


def test_flipped_are_documents_of_every_task_that_both_saw_with_both_answers():
    first = answers(boolq={1: 1.0, 2: 0.0, 3: 0.0}, piqa={1: 0.0}, arc={1: 0.0})
    second = answers(boolq={1: 1.0, 2: 1.0}, piqa={1: 1.0})
    found = flipped(first, second)
    assert [(one["task"], one["question"], one["first"], one["second"]) for one in found] == [
        ("boolq", "q2", "boolq-0.0", "boolq-1.0"),
        ("piqa", "q1", "piqa-0.0", "piqa-1.0"),
    ]
    assert {(one["verdict"], one["right"]) for one in found} == {("gained", "a")}
    assert [one["verdict"] for one in flipped(second, first)] == ["lost", "lost"]
    assert flipped({}, second) == flipped(first, {}) == []
