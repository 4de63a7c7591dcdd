"""The bundled recovery text: passages with questions and answers, and short questions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from itertools import islice

from swm.registry import TEXTS, TextSource
from swm.texts.bundled import bundled_dataset, bundled_requests, distinct
from swm.texts.example import Example
from swm.texts.sources import coqa

QUESTIONS = 2  # per passage
SHORT_QUESTIONS = {"social": 400, "commonsense": 300}  # the first ones of each validation split


@cache
def examples(purpose: str) -> tuple[Example, ...]:
    """All examples, in the order of their data sets."""
    # Mostly passages: short questions alone teach only their format and raise perplexity on everything else.
    social, commonsense = SHORT_QUESTIONS.values()
    short = [*islice(_social_examples(), social), *islice(_commonsense_examples(), commonsense)]
    return (*_coqa_examples(), *_drop_examples(), *_sciq_examples(), *short)


def _coqa_examples() -> Iterator[Example]:
    turns = coqa.turns()
    for story in coqa.stories(calibration=False):
        yield _reading_example(story, turns[story])


def _drop_examples() -> Iterator[Example]:
    """Passages on history, sport and statistics (DROP) with their questions."""
    passages: dict[str, list[tuple[str, str]]] = {}
    for row in bundled_requests("drop/bpb_5shot"):
        question = row["doc"]["query"].rsplit("\nQuestion: ", 1)[1].rsplit("\nAnswer:", 1)[0]
        answer = ", ".join(ast.literal_eval(row["request"]["continuation"].strip()))
        passages.setdefault(row["doc"]["passage"], []).append((question, answer))
    for _, passage in distinct((passage, passage) for passage in passages if not coqa.SHARED.search(passage)):
        yield _reading_example(passage, passages[passage])


def _reading_example(passage: str, turns: list[tuple[str, str]]) -> Example:
    questions = (f"\n\nQuestion: {question}\nAnswer: {answer}" for question, answer in turns[:QUESTIONS])
    return Example(passage, "".join(questions))


def _sciq_examples() -> Iterator[Example]:
    for row in bundled_dataset("sciq/none/validation"):
        text = f"{row['support']}\n" if row["support"] else ""
        yield Example(f"{text}Question: {row['question']}\nAnswer:", f" {row['correct_answer']}")


def _social_examples() -> Iterator[Example]:
    for row in bundled_dataset("social_i_qa/none/validation"):
        answer = row[f"answer{'ABC'[int(row['label']) - 1]}"]
        yield Example(f"{row['context']}\nQuestion: {row['question']}\nAnswer:", f" {answer}")


def _commonsense_examples() -> Iterator[Example]:
    for row in bundled_dataset("tau/commonsense_qa/none/validation"):
        answer = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
        yield Example(f"Question: {row['question']}\nAnswer:", f" {answer}")


TEXTS.register(
    TextSource(
        "instructions",
        "Instructions (bundled)",
        "passages with questions and answers: CoQA, DROP, SciQ, Social IQa, CommonsenseQA; bundled",
        frozenset({"recovery"}),
        examples,
    )
)
