"""LAMBADA: passages from novels, closest to the paper's calibration text (BookCorpus)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from swm.registry import TEXTS, TextSource
from swm.texts.bundled import bundled_requests, divided
from swm.texts.example import Example


def examples(purpose: str) -> list[Example]:
    """The passages for calibration, or those held out."""
    return [Example("", document) for document in _documents(purpose == "calibration")]


@cache
def _documents(calibration: bool) -> tuple[str, ...]:
    return tuple(divided(_passages(), calibration))


def _passages() -> Iterator[tuple[str, str]]:
    for row in bundled_requests("lambada/bpb_0shot"):
        text = row["request"]["context"] + row["request"]["continuation"]
        yield text, text


TEXTS.register(
    TextSource(
        "lambada",
        "LAMBADA",
        "passages from novels, closest to the paper's calibration text; bundled",
        frozenset({"calibration", "perplexity"}),
        examples,
        mix_with="coqa",
    )
)
