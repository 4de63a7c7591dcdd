"""CoQA: children's stories, news and encyclopedia passages with questions."""

from __future__ import annotations

import ast
import re
from functools import cache

from swm.registry import TEXTS, TextSource
from swm.texts.bundled import bundled_requests, divided
from swm.texts.example import Example

# Passages of CoQA and DROP that already serve another purpose: one in a BoolQ question, two in SQuAD.
SHARED = re.compile(
    "New Jersey is a state in the Northeastern and mid-|Super Bowl 50 was an American football game to|"
    "Vaudreuil and Montcalm were minimally resupplied in 1758"
)


def examples(purpose: str) -> list[Example]:
    """The passages for calibration, or those in the recovery text."""
    return [Example("", story) for story in stories(purpose == "calibration")]


@cache
def stories(calibration: bool) -> tuple[str, ...]:
    """One side of the split of the passages."""
    return tuple(divided(((story, story) for story in turns() if not SHARED.match(story)), calibration))


def turns() -> dict[str, list[tuple[str, str]]]:
    """Passage -> its questions and answers, in order."""
    by_passage: dict[str, list[tuple[str, str]]] = {}
    for row in bundled_requests("coqa/bpb_0shot"):
        doc = row["doc"]
        choices = doc["choices"] if isinstance(doc["choices"], list) else ast.literal_eval(doc["choices"])
        by_passage.setdefault(doc["story"], []).append((doc["question"], choices[0]))
    return by_passage


TEXTS.register(
    TextSource(
        "coqa",
        "CoQA",
        "children's stories, news and encyclopedia passages; bundled",
        frozenset({"calibration"}),
        examples,
        mix_with="lambada",
    )
)
