"""From documents to token ids: segments of one length, packed rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swm.errors import SettingsError, TextError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def segments(
    tokenizer: PreTrainedTokenizerBase,
    documents: list[str],
    texts: str,
    count: int,
    length: int,
    seed: int,
    fewest: int | None = None,
) -> Tensor:
    """Token ids of `count` texts, shape (count, length); with `fewest`, of as many as there are, at least `fewest`."""
    if not 1 <= count <= 100_000:
        raise SettingsError(f"--count {count} is out of range. Choose 1 to 100,000 texts.")
    if not 8 <= length <= 131_072:
        raise SettingsError(f"--length {length} is out of range. Choose 8 to 131,072 tokens.")
    prefix = leading_tokens(tokenizer)
    inner, rng = length - len(prefix), random.Random(seed)
    piece = 40 * length  # characters: enough for `length` tokens, so that a book gives many texts, not one
    order = sorted(text[i : i + piece] for text in documents for i in range(0, len(text), piece))
    rng.shuffle(order)
    segments, short = [], []
    for document in order:
        (ids,) = token_ids(tokenizer, [document])
        if len(ids) >= inner:
            start = rng.randint(0, len(ids) - inner)
            segments.append(ids[start : start + inner])
            if len(segments) == count:
                break
        else:
            short.append(ids)
    (separator,) = token_ids(tokenizer, ["\n\n"])
    stream = [token for ids in short for token in (*ids, *separator)]
    segments += [stream[i : i + inner] for i in range(0, len(stream) - inner + 1, inner)]
    fewest = count if fewest is None else fewest
    if len(segments) < fewest:
        raise TextError(
            f"{texts} is too short: it gives {len(segments)} texts of {length} tokens, but {fewest} are needed. "
            f"Lower the count or the length, or choose a longer text."
        )
    return torch.tensor([prefix + ids for ids in segments[:count]])


def packed_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> list[list[int]]:
    """Texts joined by end-of-text tokens and cut into rows of `length` tokens; an incomplete last row is dropped.

    Each text and each row starts with a BOS token if the tokenizer adds one, as in all text that the model sees.
    """
    prefix, end = leading_tokens(tokenizer), end_token(tokenizer)
    stream = [token for ids in token_ids(tokenizer, texts) for token in (*prefix, *ids, end)]
    rows: list[list[int]] = []
    place = 0
    while True:
        lead = [] if stream[place : place + len(prefix)] == prefix else prefix
        part = stream[place : place + length - len(lead)]
        if len(lead) + len(part) < length:
            return rows
        rows.append([*lead, *part])
        place += len(part)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The end-of-text token; 0 if the tokenizer has none."""
    return tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else 0


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    valid = [whole_characters(text) for text in texts]
    return [list(ids) for ids in tokenizer(valid, add_special_tokens=False, verbose=False).input_ids] if valid else []


def whole_characters(text: str) -> str:
    """The text with lone surrogates (half characters) replaced: no tokenizer accepts them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer puts before a text: a BOS token or nothing."""
    return [token for token in tokenizer("").input_ids if token != tokenizer.eos_token_id or token == _bos(tokenizer)]


def _bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.bos_token_id  # type: ignore[return-value]
