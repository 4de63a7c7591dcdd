"""Hugging Face hub data sets with a short name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from swm.registry import TEXTS, TextSource
from swm.texts.example import Example

ALL = frozenset({"calibration", "perplexity", "recovery"})


def examples(repository: str, name: str, purpose: str) -> Iterator[Example]:
    """The data set's rows for a purpose, streamed."""
    from swm.texts.rows import example_of, hub_rows

    return map(example_of, hub_rows(repository, purpose, name))


for name, repository, title, about, purposes in (
    ("wikitext", "Salesforce/wikitext:wikitext-2-raw-v1", "WikiText-2", "Wikipedia articles", ALL),
    ("ptb", "ptb-text-only/ptb_text_only", "Penn Treebank", "news from 1989", ALL),
    ("bookcorpus", "bookcorpus/bookcorpus", "BookCorpus", "novels: the paper's calibration text", ALL),
    (
        "alpaca-cleaned",
        "yahma/alpaca-cleaned",
        "Alpaca, cleaned",
        "51,760 instructions with answers: the paper's recovery text",
        frozenset({"recovery"}),
    ),
):
    TEXTS.register(TextSource(name, title, f"{about}; from the hub", purposes, partial(examples, repository, name)))
