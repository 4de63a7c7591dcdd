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
    found = [example.text for example in _examples(texts, purpose) if example.text.strip()]
    if not found:
        raise TextError(f"{texts} has no text in it. Choose a text with at least one document.")
    return found


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
    """Hash of the documents of a text for one purpose: kept with what is computed from it, it tells when they change.

    Two purposes with the same hash use the same documents: numbers of one are then not independent of the other.
    """
    if purpose == "recovery":
        found = [example.text for example in recovery_examples(texts)]
    else:
        found = documents(texts, purpose)
    digest = hashlib.sha256()
    for document in sorted(found):
        content = document.encode("utf-8", "replace")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:16]


def _examples(texts: str, purpose: str) -> Iterable[Example]:
    source = TEXTS.get(texts)
    return source.examples(purpose) if source and purpose in source.purposes else read_examples(texts, purpose)
