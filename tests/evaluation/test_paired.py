"""The paired comparison against pencil and scipy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, norm, t

from swm.evaluation.paired import VERDICTS, Paired, flipped, mean_answers, mean_difference, paired, scored


def documents(**tasks):
    rows = {
        task: [
            {"id": f"{task}{i}", "correct": c, "question": f"q{i}", "right": "a", "picked": "ab"[1 - int(c)]}
            for i, c in enumerate(values)
        ]
        for task, values in tasks.items()
    }
    return {"tasks": rows}


@pytest.mark.parametrize("documents_of_task", [4, 5, 30, 100])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_interval_and_p_value_are_those_of_the_exact_binomial_test_and_agree(documents_of_task, data):
    answers = st.lists(st.sampled_from([0.0, 1.0]), min_size=documents_of_task, max_size=documents_of_task)
    before, after = data.draw(answers), data.draw(answers)
    (one,) = paired(documents(boolq=before), documents(boolq=after))
    gained = sum(b > a for a, b in zip(before, after, strict=True))
    lost = sum(b < a for a, b in zip(before, after, strict=True))
    assert (one.gained, one.lost, one.documents) == (gained, lost, documents_of_task)
    assert one.difference == pytest.approx((gained - lost) / documents_of_task)
    assert one.p_value == pytest.approx(binomtest(gained, gained + lost).pvalue if gained + lost else 1.0)
    assert one.low <= one.difference <= one.high
    assert (one.low > 0 or one.high < 0) == (one.p_value < 0.05)
    if gained + lost:  # Clopper and Pearson by the beta distribution
        changed = gained + lost
        low = beta.ppf(0.025, gained, lost + 1) if gained else 0.0
        high = beta.ppf(0.975, gained + 1, lost) if lost else 1.0
        ends = ((2 * low - 1) * changed / documents_of_task, (2 * high - 1) * changed / documents_of_task)
        assert (one.low, one.high) == pytest.approx(ends)


def test_five_gained_and_none_lost_of_a_hundred_is_not_significant_and_its_interval_says_so():
    (one,) = paired(documents(boolq=[0.0] * 5 + [1.0] * 95), documents(boolq=[1.0] * 100))
    assert one.p_value == pytest.approx(2 * 0.5**5)  # 0.0625
    assert one.verdict == "not significant"
    assert one.low < 0 < one.high
    # 0.025 = share^5 at the lower end of Clopper and Pearson
    assert one.low == pytest.approx((2 * 0.025 ** (1 / 5) - 1) * 5 / 100)


def test_no_verdict_on_few_documents_and_never_an_interval_without_width():
    few = [0.0] * 5
    tasks = ("boolq", "piqa", "arc_easy")
    found = paired(documents(**dict.fromkeys(tasks, few)), documents(**dict.fromkeys(tasks, [1.0] * 5)))
    assert {one.verdict for one in found} == {"too few documents"}
    assert all(one.low < one.high for one in found)
    same = paired(documents(**dict.fromkeys(tasks, few)), documents(**dict.fromkeys(tasks, few)))
    assert all(one.low < 0 < one.high and one.p_value == 1 for one in same)
    (nothing,) = paired(documents(boolq=[1.0] * 100), documents(boolq=[1.0] * 100))
    # nothing changed in 100 documents: a share of changes up to 1 - 0.025^(1/100) was to be expected not to be seen
    assert (nothing.low, nothing.high) == pytest.approx((-0.0362, 0.0362), abs=1e-4)


def test_answers_that_are_means_over_runs_get_students_interval():
    before = [0.0, 0.5, 1.0, 0.5, 0.0, 1.0]
    after = [0.5, 0.5, 1.0, 1.0, 0.5, 0.5]
    (one,) = paired(documents(boolq=before), documents(boolq=after))
    changes = [b - a for a, b in zip(before, after, strict=True)]
    mean = sum(changes) / 6
    error = math.sqrt(sum((c - mean) ** 2 for c in changes) / 5 / 6)
    reach = t.ppf(0.975, 5) * error
    assert (one.low, one.high) == pytest.approx((mean - reach, mean + reach))
    assert one.p_value == pytest.approx(2 * t.sf(mean / error, 5))


def test_the_average_is_of_the_tasks_and_its_interval_agrees_with_its_p_value():
    first = documents(boolq=[1.0] * 40, piqa=[1.0, 0.0] * 20)
    second = documents(boolq=[0.0] * 20 + [1.0] * 20, piqa=[1.0, 0.0] * 20)
    boolq, piqa, average = paired(first, second)
    assert (boolq.difference, boolq.verdict) == (-0.5, "worse")
    assert (piqa.difference, piqa.p_value, piqa.verdict) == (0.0, 1.0, "not significant")
    assert (average.task, average.difference, average.documents, average.fewest) == ("average", -0.25, 80, 40)
    assert average.low < -0.25 < average.high < 0
    # Bonett and Price: boolq 20 lost of 40, piqa none changed; half a document more of each kind
    errors = [math.sqrt(20 + 1 - 20**2 / 42) / 42, math.sqrt(0 + 1) / 42]
    error = math.hypot(*errors) / 2
    assert average.high - average.low == pytest.approx(2 * norm.ppf(0.975) * error)
    assert average.p_value == pytest.approx(2 * norm.sf(0.25 / error))


def test_only_the_same_documents_are_compared():
    first, second = documents(boolq=[1.0, 0.0, 1.0]), documents(boolq=[1.0, 1.0], piqa=[1.0])
    assert [(one.task, one.documents) for one in paired(first, second)] == [("boolq", 2)]
    assert paired({}, second) == []


def test_flipped_documents_are_readable():
    first, second = documents(boolq=[1.0, 0.0, 1.0]), documents(boolq=[0.0, 1.0, 1.0])
    lost, gained = flipped(first, second)
    assert lost == {"task": "boolq", "verdict": "lost", "question": "q0", "right": "a", "first": "a", "second": "b"}
    assert gained["verdict"] == "gained"


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
    nothing: dict[str, dict[int, float]] = {"choice_logprob": {}, "bits_per_byte": {}}
    assert mean_answers(runs) == {
        "tasks": {
            "boolq": {"accuracy": pytest.approx({1: 2 / 3, 2: 2 / 3, 3: 1 / 3}), **nothing},
            "piqa": {"accuracy": {}, **nothing},  # the third run has no such task
        }
    }
    assert mean_answers([{}, runs[0]]) == {"tasks": {}}
    assert mean_answers([runs[0], {}])["tasks"] == {task: {"accuracy": {}, **nothing} for task in ("boolq", "piqa")}
    assert mean_answers([*map(scored, runs)]) == mean_answers(runs)


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


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_mean_difference_is_numpys_mean_over_tasks_of_the_means_over_documents(data):
    scores = st.lists(st.sampled_from([0.0, 1 / 3, 1.0]), min_size=3, max_size=9)
    before = {task: data.draw(scores) for task in ("boolq", "piqa", "arc")[: data.draw(st.integers(1, 3))]}
    after = {task: [data.draw(st.sampled_from([0.0, 0.5, 1.0])) for _ in values] for task, values in before.items()}
    one, other = ({"tasks": {t: [{"id": i, "correct": c} for i, c in enumerate(v)] for t, v in side.items()}}
                  for side in (before, after))  # fmt: skip
    wanted = np.mean([np.mean(np.subtract(after[task], before[task])) for task in before])
    assert mean_difference(one, other) == pytest.approx(wanted, abs=1e-8)
    assert mean_difference(one, other, tasks=["boolq"]) == pytest.approx(
        np.mean(np.subtract(after["boolq"], before["boolq"])), abs=1e-8
    )
    assert mean_difference(scored(one), scored(other)) == mean_difference(one, other)
    with pytest.raises(ValueError, match="no task"):
        mean_difference(one, {})


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
