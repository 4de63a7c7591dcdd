"""A recovery text as sequences of token ids with labels."""

from __future__ import annotations

from transformers import (
    PreTrainedTokenizerBase,
)

from swm.errors import TextError
from swm.healing.distillation import IGNORED
from swm.settings import RecoverySettings
from swm.texts.example import Example
from swm.texts.tokens import end_token, leading_tokens, packed_rows, token_ids

FIRST_EXAMPLES = 64  # that a check reads first; twice as many each time until they are enough


def training_rows(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], settings: RecoverySettings
) -> list[dict[str, list[int]]]:
    """Sequences of token ids with labels, each of `settings.length` tokens.

    Loss on "text": the examples are concatenated with end-of-text between them and cut into equal parts. Loss on
    "response": one example per sequence, cut or padded; the prompt and the padding have no label.

    Raises:
        TextError: if there are too few sequences for the held-out ones and one batch.
    """
    rows = rows_of(tokenizer, examples, settings)
    if not _enough(rows, settings):
        raise TextError(
            f"The recovery text is too short: it gives {len(rows)} sequences of {settings.length} tokens, but "
            f"{settings.held_out} are held out and a batch needs {settings.batch}. Choose a longer text or lower "
            "--length, --batch or --held-out."
        )
    return rows


def check_rows(tokenizer: PreTrainedTokenizerBase, examples: list[Example], settings: RecoverySettings) -> None:
    """Raise the error of `training_rows`, without reading more examples than show that there is none.

    More examples never give fewer sequences.
    """
    count = FIRST_EXAMPLES
    while count < len(examples):
        if _enough(rows_of(tokenizer, examples[:count], settings), settings):
            return
        count *= 2
    training_rows(tokenizer, examples, settings)


def _enough(rows: list[dict[str, list[int]]], settings: RecoverySettings) -> bool:
    return len(rows) >= settings.held_out + settings.batch


def rows_of(
    tokenizer: PreTrainedTokenizerBase, examples: list[Example], settings: RecoverySettings
) -> list[dict[str, list[int]]]:
    """All sequences of a recovery text, as for `training_rows`, without checking their number."""
    length = settings.length
    if settings.loss_on == "text":
        parts = packed_rows(tokenizer, [example.prompt + example.response for example in examples], length)
        return [{"input_ids": part, "labels": part, "attention_mask": [1] * length} for part in parts]
    prefix, end = leading_tokens(tokenizer), end_token(tokenizer)
    prompts = token_ids(tokenizer, [example.prompt for example in examples])
    responses = token_ids(tokenizer, [example.response for example in examples])
    rows = []
    for prompt, response in zip(([*prefix, *ids] for ids in prompts), responses, strict=True):
        ids = [*prompt, *response, end][:length]
        labels = ([IGNORED] * len(prompt) + [*response, end])[:length]
        if all(label == IGNORED for label in labels):
            continue  # the prompt alone fills the sequence
        padding = length - len(ids)
        rows.append(
            {
                "input_ids": ids + [end] * padding,
                "labels": labels + [IGNORED] * padding,
                "attention_mask": [1] * len(ids) + [0] * padding,
            }
        )
    return rows
