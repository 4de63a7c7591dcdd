"""SQuAD: Wikipedia paragraphs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from swm.registry import TEXTS, TextSource
from swm.texts.bundled import bundled_requests, divided
from swm.texts.example import Example


def examples(purpose: str) -> list[Example]:
    """The paragraphs for calibration, or those held out."""
    return [Example("", document) for document in _documents(purpose == "calibration")]


@cache
def _documents(calibration: bool) -> tuple[str, ...]:
    return tuple(divided(_paragraphs(), calibration))


def _paragraphs() -> Iterator[tuple[str, str]]:
    """Grouped by article, so that one article never serves two purposes."""
    for row in bundled_requests("squad/bpb_5shot"):
        query = row["doc"]["query"]
        yield row["doc"]["title"], query.split("\nBackground: ", 1)[1].rsplit("\nQuestion: ", 1)[0]


TEXTS.register(
    TextSource(
        "squad",
        "SQuAD",
        "Wikipedia paragraphs, a different domain from the recovery text; bundled",
        frozenset({"calibration", "perplexity"}),
        examples,
        mix_with="coqa",
    )
)
