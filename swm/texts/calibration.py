"""Token ids of calibration text, of held-out text for perplexity, and of text to fit merged layers on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swm.registry import TEXTS
from swm.settings import FIT_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
from swm.texts.documents import documents
from swm.texts.tokens import segments


def calibration_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: str = "lambada", count: int = 10, length: int = 128, seed: int = 1234
) -> Tensor:
    """Token ids of `count` calibration texts of `length` tokens.

    Args:
        texts: one of TEXTS, a `.txt` or `.jsonl` file, or a hub data set ("wikitext", "org/name",
            "org/name:config").
        seed: selects the documents and where in them each text begins.

    Returns:
        Shape (count, length), int64, no padding. Each text comes from one document that is long enough; if there are
        too few of those, shorter documents are joined. Starts with a BOS token if the tokenizer adds one.

    Raises:
        TextError: if the text is missing, empty or too short. SettingsError: if count or length is out of range.
    """
    return segments(tokenizer, documents(texts, "calibration"), texts, count, length, seed)


def perplexity_tokens(
    tokenizer: PreTrainedTokenizerBase, texts: str = "lambada", count: int = 32, length: int = 256, seed: int = 1234
) -> Tensor:
    """Token ids of held-out texts, shape (count, length); like `calibration_tokens`, but from other documents."""
    return segments(tokenizer, documents(texts, "perplexity"), texts, count, length, seed)


def fit_tokens(
    tokenizer: PreTrainedTokenizerBase,
    texts: str,
    length: int,
    seed: int,
    tokens: int = FIT_TOKENS,
    skip: int = 0,
) -> Tensor:
    """Token ids to fit merged layers on, shape (texts, length): calibration text without its first `skip` texts.

    A bundled text is mixed with another bundled one, because layers fitted on one kind of text work best on that kind.
    A text that is too short gives fewer rows, at least ten per kind.
    """
    count = -(-tokens // length)
    source = TEXTS.get(texts)
    kinds = [texts, source.mix_with] if source and source.mix_with else [texts]
    per_kind = -(-count // len(kinds))
    rows_by_kind = [
        segments(tokenizer, documents(kind, "calibration"), kind, skip + per_kind, length, seed, skip + 10)[skip:]
        for kind in kinds
    ]
    rows = torch.cat(rows_by_kind)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
