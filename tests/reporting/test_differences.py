"""Differences between models against scipy and pencil, over documents, segments of text and seeds."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import ttest_1samp

from swm.reporting.differences import Measured, difference
from swm.reporting.row import Differences

TASKS = {"boolq": 12, "piqa": 9}


def answers(seed):
    """Random answers to the same questions, with their log-likelihoods."""
    draw = random.Random(seed)
    return {
        "tasks": {
            task: [
                {
                    "id": f"{i}",
                    "correct": float(draw.random() < 0.5),
                    "log_likelihoods": [draw.uniform(-9, 0), draw.uniform(-9, 0)],
                    "answer": i % 2,
                    "bytes": None if task == "boolq" else 3 + i,
                }
                for i in range(count)
            ]
            for task, count in TASKS.items()
        }
    }


def perplexity(seed, segments=8):
    draw = random.Random(1000 + seed)
    losses = [draw.uniform(2, 4) for _ in range(segments)]
    value = math.exp(sum(losses) / segments)
    return {"squad": {"value": value, "low": 0.9 * value, "high": 1.2 * value, "texts": segments, "losses": losses}}


def model(*training_seeds, of=0):
    seeds = training_seeds or (0,)
    results = [100 * of + seed for seed in seeds]
    return Measured("m", tuple(map(answers, results)), tuple(map(perplexity, results)), training_seeds)


def choice_logprobs(given_answers, task):
    return [
        row["log_likelihoods"][row["answer"]] - logsumexp(row["log_likelihoods"])
        for row in given_answers["tasks"][task]
    ]


def task_changes(first, second):
    return {
        task: [b - a for a, b in zip(choice_logprobs(first, task), choice_logprobs(second, task), strict=True)]
        for task in TASKS
    }


@given(st.integers(0, 50), st.integers(51, 99))
def test_the_average_of_choice_log_probabilities_is_that_of_the_tasks_with_scipys_errors(one, other):
    first, second = model(of=one), model(of=other)
    entry = difference(first, second).scores["choice_logprob"]
    tests = [ttest_1samp(changes, 0) for changes in task_changes(first.answers[0], second.answers[0]).values()]
    means = [test.estimate if hasattr(test, "estimate") else test._estimate for test in tests]
    assert entry["difference"] == pytest.approx(sum(means) / 2, abs=1e-8)
    errors = [test._standard_error for test in tests]
    reach = 1.959964 * math.hypot(*errors) / 2
    assert (entry["low"], entry["high"]) == pytest.approx((sum(means) / 2 - reach, sum(means) / 2 + reach), abs=1e-6)
    assert (entry["tasks"], entry["documents"], entry["fewest"]) == (2, 21, 9)


def test_bits_per_byte_leave_out_labels_and_a_single_task_has_students_interval():
    first, second = model(of=1), model(of=2)
    entry = difference(first, second).scores["bits_per_byte"]
    rows = [measured.answers[0]["tasks"]["piqa"] for measured in (first, second)]
    bits = [[-row["log_likelihoods"][row["answer"]] / row["bytes"] / math.log(2) for row in each] for each in rows]
    interval = ttest_1samp([b - a for a, b in zip(*bits, strict=True)], 0).confidence_interval()
    assert (entry["low"], entry["high"]) == pytest.approx((interval.low, interval.high), abs=1e-7)
    assert entry["tasks"] == 1


def test_perplexities_are_compared_segment_by_segment():
    first, second = model(of=1), model(of=2)
    entry = difference(first, second).perplexity["squad"]
    losses = [measured.perplexities[0]["squad"]["losses"] for measured in (first, second)]
    interval = ttest_1samp([b - a for a, b in zip(*losses, strict=True)], 0).confidence_interval()
    values = [measured.perplexities[0]["squad"]["value"] for measured in (first, second)]
    assert entry["ratio"] == pytest.approx(values[1] / values[0])
    assert (entry["low"], entry["high"]) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


def test_perplexities_of_earlier_releases_get_a_wider_interval():
    first, second = model(of=1), model(of=2)
    for measured in (first, second):
        del measured.perplexities[0]["squad"]["losses"]
    entry = difference(first, second).perplexity["squad"]
    reach = math.hypot(math.log(1.2), math.log(0.9))
    assert entry["high"] / entry["ratio"] == pytest.approx(math.exp(reach))
    assert entry["low"] / entry["ratio"] == pytest.approx(math.exp(-reach))
    assert not entry["paired"]


def test_a_broken_model_gets_finite_numbers():
    first, second = model(of=1), model(of=2)
    first.perplexities[0]["squad"]["losses"], second.perplexities[0]["squad"]["losses"] = [3.0, 3.0], [3.0, 135.0]
    entry = difference(first, second).perplexity["squad"]
    assert 0 <= entry["low"] < entry["ratio"] <= entry["high"] < math.inf


def test_with_the_same_seeds_the_spread_is_that_of_each_seeds_difference():
    first, second = model(1, 2, 3, of=1), model(1, 2, 3, of=2)
    entry = difference(first, second).scores["choice_logprob"]
    by_seed = []
    for a, b in zip(first.answers, second.answers, strict=True):
        means = [sum(changes) / len(changes) for changes in task_changes(a, b).values()]
        by_seed.append(sum(means) / 2)
    assert entry["difference"] == pytest.approx(sum(by_seed) / 3, abs=1e-8)
    interval = ttest_1samp(by_seed, 0).confidence_interval()
    assert entry["over_seeds"] == pytest.approx([interval.low, interval.high], abs=1e-7)
    seeds, documents = interval.high - entry["difference"], entry["over_documents"][1] - entry["difference"]
    assert entry["high"] - entry["difference"] == pytest.approx(math.hypot(seeds, documents), abs=1e-7)


def test_a_difference_that_only_some_seeds_show_is_not_decided():
    """Over documents alone it would be: all seeds' means differ by more than their documents do."""
    rows = lambda correct: {"tasks": {"piqa": [{"id": f"{i}", "correct": correct} for i in range(40)]}}  # noqa: E731
    first = Measured("a", (rows(0.0), rows(0.0)), ({}, {}), (1, 2))
    second = Measured("b", (rows(1.0), rows(0.0)), ({}, {}), (1, 2))
    second.answers[0]["tasks"]["piqa"][0]["correct"] = 0.0  # so that there is a spread over documents
    entry = difference(first, second).scores["accuracy"]
    assert entry["over_documents"][0] > 0 > entry["low"]
    assert entry["verdict"] == "not significant"


def test_other_seeds_on_each_side_add_the_spread_of_each():
    first, second = model(1, 2, of=1), model(5, 6, of=2)
    entry = difference(first, second).perplexity["squad"]
    logs = [[math.log(p["squad"]["value"]) for p in measured.perplexities] for measured in (first, second)]
    reaches = []
    for values in logs:
        interval = ttest_1samp(values, 0).confidence_interval()
        reaches.append((interval.high - interval.low) / 2)
    assert math.log(entry["over_seeds"][1] / entry["ratio"]) == pytest.approx(math.hypot(*reaches))


def test_only_the_named_tasks_count():
    first, second = model(of=1), model(of=2)
    alone = difference(first, second, ["piqa"]).scores["choice_logprob"]
    changes = task_changes(first.answers[0], second.answers[0])["piqa"]
    assert alone["difference"] == pytest.approx(sum(changes) / 9, abs=1e-8)
    assert difference(first, second, []).scores == {}


def test_other_texts_are_not_compared():
    first, second = model(of=1), model(of=2)
    second.perplexities[0]["squad"]["texts"] = 9
    assert difference(first, second).perplexity == {}
    assert difference(Measured("a", ({},), ({},)), second) == Differences("a", {}, {})
