"""Tests of swm.healing.distillation."""

import dataclasses

from swm.healing.distillation import IGNORED
from swm.healing.rows import training_rows
from swm.texts.example import Example
from tests.healing.lora_cases import SMALL


def test_response_loss_labels_the_answer_and_the_end_only(tokenizer):
    settings = dataclasses.replace(SMALL, loss_on="response", length=40)
    row = training_rows(tokenizer, [Example("the old house", " stood")] * 4, settings)[0]
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(learned) == " stood<end>"
    assert len(row["input_ids"]) == 40
    assert sum(row["attention_mask"]) == len(tokenizer("the old house stood").input_ids) + 1
    assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
