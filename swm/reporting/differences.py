"""How a model differs from another one, over the same documents and texts, with intervals over documents and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from swm.evaluation.paired import (
    ACCURACY,
    SCORES,
    TOO_FEW,
    UNDECIDED,
    has_interval,
    has_losses,
    log_perplexity_ratio,
    mean_answers,
    mean_difference,
    mean_perplexity,
    paired,
    student,
)
from swm.reporting.compare import documents_key, same_text, scores_of
from swm.reporting.names import row_name, text_name
from swm.reporting.row import Change, Differences, Ratio, Row

Entry = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """The results of a model, or of the models that healing with several seeds gave.

    Attributes:
        name: display name.
        answers: for each seed, the scores of its answers, as from `scored`.
        perplexities: for each seed, the perplexities by text, as in scores.json.
        seeds: the seeds; empty for a model that is not healed.
        rows: the rows of `compare` behind it.
    """

    name: str
    answers: tuple[Entry, ...]
    perplexities: tuple[Entry, ...]
    seeds: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()

    @cached_property
    def mean(self) -> Entry:
        """The answers, averaged over seeds for each document."""
        return mean_answers(self.answers)


def measured(rows: Sequence[Row]) -> Measured | None:
    """The results behind rows of `compare` that differ only in the seed of their healing; None if there are none.

    Raises:
        ExperimentError: if a file with answers is damaged.
    """
    if not any(row.scores or row.perplexities for row in rows):
        return None
    seeds = tuple(row.seed for row in rows if row.seed is not None)
    answers = tuple(scores_of(row) for row in rows)
    return Measured(row_name(rows[0]), answers, tuple(row.perplexities for row in rows), seeds, tuple(rows))


def compared(reference: Measured | None, other: Measured | None) -> Differences | None:
    """How a model differs from another one; None if nothing can be compared."""
    if reference is None or other is None or reference.rows[0].key == other.rows[0].key:
        return None
    found = difference(reference, other)
    first, rows = reference.rows[0], (*reference.rows, *other.rows)
    scores, reasons = found.scores, []
    if not all(row.scores for row in rows):
        scores = {}
    elif len({str(documents_key(row)) for row in rows}) > 1:
        scores = {}
        reasons = [f"Scores are not compared with those of {reference.name}: they are of other tasks or documents."]
    single = [text for text, entry in first.perplexities.items() if not has_interval(entry)]
    reasons += [f"Perplexity on {text_name(text)} is of a single text: no interval." for text in single]
    above = [task for task in first.tasks_above_chance if task in first.scores]
    some = ACCURACY in scores and 0 < len(above) < len(first.scores)
    chance = _score(reference, other, ACCURACY, above) if some else None
    found = replace(found, scores=scores, above_chance=chance, not_compared=tuple(reasons))
    return found if scores or found.perplexity or reasons else None


def difference(reference: Measured, other: Measured, tasks: Collection[str] | None = None) -> Differences:
    """What changes from one model to another.

    All intervals are 95 % intervals over the same documents or segments of text. If a model was healed with several
    seeds, they include the spread over seeds. What was not measured on both sides, or not on the same documents, or on
    a single text, is missing.

    Args:
        tasks: only these tasks.
    """
    scores = {score: entry for score in SCORES if (entry := _score(reference, other, score, tasks))}
    return Differences(reference.name, scores, _perplexities(reference, other))


def _score(reference: Measured, other: Measured, score: str, tasks: Collection[str] | None) -> Change | None:
    means = reference.mean, other.mean
    if not (by_task := paired(*means, score, tasks)):
        return None
    last = by_task[-1]  # the average, if there are several tasks
    spreads = _spreads(
        (reference.answers, other.answers),
        means,
        reference.seeds == other.seeds,
        lambda first, second: mean_difference(first, second, score, tasks),
    )
    ends = _interval(last.difference, last.low, last.high, spreads)
    decided = ends["low"] > 0 or ends["high"] < 0
    undecided = TOO_FEW if last.verdict == TOO_FEW else UNDECIDED
    entry: Any = {
        "difference": last.difference,
        **ends,
        "verdict": last.verdict if decided else undecided,
        "tasks": max(1, len(by_task) - 1),
        "documents": last.documents,
        "fewest": last.fewest,
    }
    return cast(Change, entry)


def _spreads(
    sides: tuple[Sequence[Entry], Sequence[Entry]],
    means: tuple[Entry, Entry],
    same_seeds: bool,
    value: Callable[[Entry, Entry], float],
) -> list[list[float]]:
    """Lists of differences that vary with the seed alone; none if both sides are single models.

    With the same seeds, one list: a seed's model against that seed's model. Otherwise a list for each side with
    several, of its models against the other side's mean.
    """
    first, second = sides
    if same_seeds and len(second) > 1:
        return [[value(a, b) for a, b in zip(first, second, strict=True)]]
    spreads = [[value(means[0], b) for b in second], [value(a, means[1]) for a in first]]
    return [spread for spread in spreads if len(spread) > 1]


def _interval(value: float, low: float, high: float, spreads: list[list[float]]) -> Any:
    """`low` to `high`; with several seeds widened by the spread over them, beside the two parts."""
    if not spreads:
        return {"low": low, "high": high}
    ends = [student(spread)[:2] for spread in spreads]
    over_seeds = math.hypot(*((seeds_high - seeds_low) / 2 for seeds_low, seeds_high in ends))
    return {
        "low": value - math.hypot(value - low, over_seeds),
        "high": value + math.hypot(high - value, over_seeds),
        "over_documents": [low, high],
        "over_seeds": [value - over_seeds, value + over_seeds],
    }


def _perplexities(reference: Measured, other: Measured) -> dict[str, Ratio]:
    """The ratio of the perplexities of each text that both were measured on."""
    entries: dict[str, Ratio] = {}
    for text in other.perplexities[0] if other.perplexities else ():
        sides = tuple([of_seed.get(text, {}) for of_seed in model.perplexities] for model in (reference, other))
        if not all(entry and same_text(sides[0][0], entry) for side in sides for entry in side):
            continue
        if not has_interval(sides[0][0]):
            continue
        means = mean_perplexity(sides[0]), mean_perplexity(sides[1])
        spreads = _spreads(
            (sides[0], sides[1]),
            means,
            reference.seeds == other.seeds,
            lambda first, second: log_perplexity_ratio(first, second)[0],
        )
        value, low, high = log_perplexity_ratio(*means)
        ends = {"ratio": value, **_interval(value, low, high, spreads)}
        entry: Any = {name: _exponential(end) for name, end in ends.items()}
        entries[text] = cast(Ratio, {**entry, "paired": has_losses(*means)})
    return entries


def _exponential(ends: Any) -> Any:
    """e to the power of a number or of each number in a list, capped because JSON has no infinity."""
    return [_exponential(end) for end in ends] if isinstance(ends, list) else math.exp(min(ends, 50.0))
