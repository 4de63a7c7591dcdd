"""From the name of a text to its documents, for calibration, perplexity or recovery."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

from swm.errors import TextError
from swm.registry import TEXTS
from swm.texts.example import Example
from swm.texts.rows import read_examples
from swm.texts.task_prompts import task_prompts


def documents(texts: str, purpose: str) -> list[str]:
    """The documents of a text for one purpose: "calibration", "perplexity" or "recovery".

    Args:
        texts: one of TEXTS, "task:NAME" for the prompts of a task, a `.txt` or `.jsonl` file, or a hub data set.

    Raises:
        TextError: if the text is missing, damaged or empty.
    """
    if texts.startswith("task:"):
        return task_prompts(texts.removeprefix("task:"))
    contents = [example.text for example in _examples(texts, purpose) if example.text.strip()]
    if not contents:
        raise TextError(f"{texts} contains no text. Choose a text with at least one document.")
    return contents


def recovery_examples(texts: str = "instructions", seed: int = 1234) -> list[Example]:
    """Examples for recovery in a seeded order.

    Args:
        texts: one of TEXTS, a `.jsonl` file or hub data set with prompt and response columns, or a plain text (then
            the whole text is the response).
    """
    examples = [example for example in _examples(texts, "recovery") if example.response.strip()]
    if not examples:
        raise TextError(f"{texts} has no examples with a response. Choose another recovery text.")
    random.Random(seed).shuffle(examples)
    return examples


def text_hash(texts: str, purpose: str = "calibration") -> str:
    """Hash of a text's documents for one purpose; saved with results, so that a later change of the text shows.

    If the hashes of two purposes are equal, both use the same documents and their numbers are not independent.
    """
    if purpose == "recovery":
        contents = [example.text for example in recovery_examples(texts)]
    else:
        contents = documents(texts, purpose)
    digest = hashlib.sha256()
    for content in sorted(contents):
        encoded = content.encode("utf-8", "replace")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:16]


def _examples(texts: str, purpose: str) -> Iterable[Example]:
    source = TEXTS.get(texts)
    return source.examples(purpose) if source and purpose in source.purposes else read_examples(texts, purpose)
