"""Tests of swm.texts.calibration."""

import json

import pytest
import torch

from swm.errors import SettingsError, TextError
from swm.settings import PERPLEXITY_TEXTS
from swm.texts.calibration import calibration_tokens, perplexity_tokens
from tests.texts.texts_cases import CALIBRATION_TEXTS


def test_tokens_are_seeded_and_of_the_asked_shape(tokenizer, text_file):
    first = calibration_tokens(tokenizer, str(text_file), 5, 32, seed=1)
    assert first.shape == (5, 32)
    assert first.dtype == torch.int64
    assert torch.equal(first, calibration_tokens(tokenizer, str(text_file), 5, 32, seed=1))
    assert not torch.equal(first, calibration_tokens(tokenizer, str(text_file), 5, 32, seed=2))


def test_each_text_is_a_piece_of_one_document(tokenizer, text_file):
    paragraphs = text_file.read_text().split("\n\n")
    for row in calibration_tokens(tokenizer, str(text_file), 5, 32):
        assert any(tokenizer.decode(row) in paragraph for paragraph in paragraphs)


def test_short_documents_are_joined(tokenizer, tmp_path):
    file = tmp_path / "short.jsonl"
    file.write_text("".join(json.dumps({"text": f"line {i} of a short text"}) + "\n" for i in range(100)))
    assert calibration_tokens(tokenizer, str(file), 3, 64).shape == (3, 64)


def test_local_data_set_loads_as_one_from_the_hub_does(tokenizer, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": f"row {i} " * 60}) + "\n" for i in range(5)))
    assert calibration_tokens(tokenizer, str(folder), 3, 32).shape == (3, 32)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "contains no text"),
        ("blank.txt", b"\n \n\n", "contains no text"),
        ("short.txt", b"only a few words", "is too short: it gives 0 texts of 128 tokens, but 10 are needed"),
        ("latin.txt", b"caf\xe9 " * 1000, "is not UTF-8 text"),
        ("bad.jsonl", b'{"text": "a"}\n{oops\n', "Line 2 of .* is not JSON"),
        ("columns.jsonl", b'{"a": 1}\n', "No text column among a"),
    ],
)
def test_text_file_that_cannot_be_used_is_told(tokenizer, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message):
        calibration_tokens(tokenizer, str(tmp_path / name))


def test_missing_file_and_unknown_name_are_told(tokenizer, tmp_path):
    with pytest.raises(TextError, match="There is no file"):
        calibration_tokens(tokenizer, str(tmp_path / "no.txt"))
    with pytest.raises(TextError, match=r"Cannot load text 'no-such-text'.*lambada, bookcorpus, coqa"):
        calibration_tokens(tokenizer, "no-such-text")


@pytest.mark.parametrize(("count", "length"), [(0, 128), (10, 7), (100_001, 128), (10, 10**9)])
def test_count_and_length_out_of_range_are_refused(tokenizer, text_file, count, length):
    with pytest.raises(SettingsError, match="out of range"):
        calibration_tokens(tokenizer, str(text_file), count, length)


def test_nul_and_very_long_lines_are_only_text(tokenizer, tmp_path):
    file = tmp_path / "odd.txt"
    file.write_bytes(b"a\x00b " * 500_000)
    assert calibration_tokens(tokenizer, str(file), 2, 64).shape == (2, 64)


@pytest.mark.data
def test_bundled_texts_are_plenty(tokenizer, real):
    for name in CALIBRATION_TEXTS:
        assert calibration_tokens(tokenizer, name, 32, 256).shape == (32, 256)
    for name in PERPLEXITY_TEXTS:
        assert perplexity_tokens(tokenizer, name, 64, 256).shape == (64, 256)
    assert len(real["recovery", "instructions"]) > 2000
