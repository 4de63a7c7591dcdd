"""Tests of swm.healing.rows."""

import copy
import dataclasses

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from swm.errors import TextError
from swm.healing import rows as rows_module
from swm.healing.rows import check_rows, training_rows
from swm.texts.example import Example
from tests.conftest import WORDS
from tests.healing.lora_cases import SMALL


def test_packed_rows_hold_every_token_in_order_with_an_end_between_examples(tokenizer, examples):
    rows = training_rows(tokenizer, examples, SMALL)
    stream = [token for row in rows for token in row["input_ids"]]
    text = "<end>".join(e.prompt + e.response for e in examples)
    assert text.startswith(tokenizer.decode(stream))
    assert all(row["labels"] == row["input_ids"] and len(row["input_ids"]) == 16 for row in rows)


def test_example_whose_prompt_fills_the_sequence_is_left_out(tokenizer):
    settings = dataclasses.replace(SMALL, loss_on="response", length=8)
    rows = training_rows(tokenizer, [Example(WORDS, " yes"), *[Example("", " yes")] * 4], settings)
    assert len(rows) == 4


@pytest.fixture
def bos_tokenizer(tokenizer):
    """As Llama's and Gemma's: a BOS token leads every text."""
    trained = copy.deepcopy(tokenizer.backend_tokenizer)
    trained.add_special_tokens(["<bos>"])
    bos = trained.token_to_id("<bos>")
    trained.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<end>", bos_token="<bos>")


@pytest.mark.parametrize("loss_on", ["text", "response"])
def test_recovery_text_begins_as_the_family_begins_every_text(bos_tokenizer, examples, loss_on):
    bos, end = bos_tokenizer.bos_token_id, bos_tokenizer.eos_token_id
    rows = [r["input_ids"] for r in training_rows(bos_tokenizer, examples, dataclasses.replace(SMALL, loss_on=loss_on))]
    assert all(row[0] == bos and row[1] != bos for row in rows)
    if loss_on == "text":
        # The tokenizer's own ids of each example, an end after each; the leads of rows are all that is added.
        whole = [t for e in examples for t in (*bos_tokenizer(e.prompt + e.response).input_ids, end)]
        found = [t for row in rows for t in row[1:]]
        plain = [t for t in whole if t != bos]
        assert [t for t in found if t != bos] == plain[: len([t for t in found if t != bos])]
        inner = [i for row in rows for i, t in enumerate(row) if t == bos and i]
        assert inner, "texts that begin within a row are led by it as well"
        assert all(row[i - 1] == end for row in rows for i, t in enumerate(row) if t == bos and i)
    else:
        assert (
            rows[0]
            == bos_tokenizer(examples[0].prompt).input_ids
            + (bos_tokenizer(examples[0].response, add_special_tokens=False).input_ids + [end] * 16)[
                : 16 - len(bos_tokenizer(examples[0].prompt).input_ids)
            ]
        )


@pytest.mark.parametrize("loss_on", ["text", "response"])
def test_a_check_reads_no_more_of_the_text_than_it_needs_and_refuses_what_training_refuses(
    tokenizer, monkeypatch, loss_on
):
    read = []

    def counted(tokenizer, examples, settings):
        read.append(len(examples))
        return rows_of(tokenizer, examples, settings)

    rows_of = rows_module.rows_of
    monkeypatch.setattr(rows_module, "rows_of", counted)
    examples = [Example(f"{n} and", f" then {n + 1}") for n in range(1000)]
    settings = dataclasses.replace(SMALL, loss_on=loss_on, length=16)
    check_rows(tokenizer, examples, settings)
    assert 0 < sum(read) < 1000
    whole = len(rows_of(tokenizer, examples, settings))
    for held_out in (whole - settings.batch, whole - settings.batch + 1, 5000):
        asked = dataclasses.replace(settings, held_out=held_out)
        errors = []
        for each in (check_rows, training_rows):
            try:
                each(tokenizer, examples, asked)
            except TextError as error:
                errors.append(str(error))
        assert len(errors) == (0 if held_out + settings.batch <= whole else 2)
        assert len({*errors}) < 2
