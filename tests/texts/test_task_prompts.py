"""Tests of swm.texts.task_prompts."""

import pytest

from swm.texts.bundled import ngrams
from swm.texts.task_prompts import TASK_DATA, task_dataset


@pytest.mark.data
@pytest.mark.parametrize("task", TASK_DATA)
def test_no_text_shares_13_words_with_a_task(real_ngrams, task):
    def strings(value):
        if isinstance(value, dict):
            value = value.values()
        return [value] if isinstance(value, str) else [s for v in value for s in strings(v)] if value else []

    words = set()
    for row in task_dataset(task):
        words |= ngrams(" ".join(strings([v for v in row.values() if isinstance(v, (str, list, dict))])))
    for key, grams in real_ngrams.items():
        assert not grams & words, key


@pytest.mark.data
@pytest.mark.parametrize(
    ("task", "count"),
    [
        ("boolq", 3270), ("piqa", 1838), ("hellaswag", 10042), ("winogrande", 1267), ("arc_easy", 570),
        ("arc_challenge", 299), ("openbookqa", 500),
    ],
)  # fmt: skip
def test_tasks_have_their_whole_validation_split(task, count):
    assert len(task_dataset(task)) == count
