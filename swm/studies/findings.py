"""What a study's scores can tell apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations

from swm.evaluation.paired import ACCURACY, LOWER_IS_BETTER, SCORES, has_interval
from swm.evaluation.task_names import MOST_DOCUMENTS
from swm.reporting.compare import compare
from swm.reporting.differences import Measured, compared, measured
from swm.reporting.row import Change, Row
from swm.studies.rows import study_groups
from swm.workspace.experiments import Experiment

NEAR = 3.0  # times the original's perplexity: beyond it models are ruined, which every score sees


@dataclass
class Decided:
    """How many pairs of models of a stage each score tells apart.

    Attributes:
        near: whether only pairs near the original's perplexity count.
        documents: of the smallest task.
        decided: by score. against_perplexity: how many of these in favour of the model with the higher perplexity.
    """

    stage: str
    near: bool
    pairs: int = 0
    documents: int = MOST_DOCUMENTS
    decided: Counter[str] = field(default_factory=Counter)
    against_perplexity: Counter[str] = field(default_factory=Counter)

    def add(self, scores: Mapping[str, Change], second_is_worse: bool) -> None:
        """Count a pair with these differences."""
        self.pairs += 1
        self.documents = min(scores[ACCURACY]["fewest"], self.documents)
        for score in SCORES:
            decided = scores[score]["low"] > 0 or scores[score]["high"] < 0
            second_is_better = (scores[score]["difference"] > 0) != (score in LOWER_IS_BETTER)
            self.decided[score] += decided
            self.against_perplexity[score] += decided and second_is_better == second_is_worse


def pairs_decided(experiment: Experiment, runs: set[str]) -> list[Decided]:
    """How often each score tells two methods apart that perplexity tells apart.

    A pair are two methods at the same depth and stage whose perplexity intervals do not overlap, on the first text. A
    score decides it if the 95 % interval of the paired difference of the tasks' average leaves out 0.

    Args:
        runs: only methods with one of these runs.

    Returns:
        Counts for each stage; where some models are ruined, also for the pairs within NEAR times the original's
        perplexity.
    """
    original = next(row.perplexity for row in compare(experiment) if row.is_original)
    table = _methods(experiment, runs)
    counted: dict[tuple[str, bool], Decided] = {}
    for (first, one), (second, other) in combinations(table, 2):
        scores = _differences(one, other) if _apart(first, second) else None
        perplexities = first.perplexity or 0.0, second.perplexity or 0.0
        for near in {False, bool(original and max(perplexities) <= NEAR * original)} if scores else ():
            counts = counted.setdefault((first.stage, near), Decided(first.stage, near))
            counts.add(scores or {}, second_is_worse=perplexities[1] > perplexities[0])
    ordered = [counted[key] for key in sorted(counted)]
    whole = {counts.stage: counts.pairs for counts in ordered if not counts.near}
    return [counts for counts in ordered if not counts.near or counts.pairs < whole[counts.stage]]


def _methods(experiment: Experiment, runs: set[str]) -> list[tuple[Row, Measured | None]]:
    """The studied methods with one of these runs, and their results."""
    groups = [(row, group) for row, group in study_groups(experiment) if row.method != "original"]
    return [(row, measured(group)) for row, group in groups if runs & {member.run for member in group}]


def _differences(one: Measured | None, other: Measured | None) -> dict[str, Change] | None:
    """The differences of all scores; None if one of them was not measured on both sides."""
    found = compared(one, other)
    return found.scores if found and {*SCORES} <= {*found.scores} else None


def _apart(first: Row, second: Row) -> bool:
    """Whether two are of one depth and stage, and their intervals on the first text they share do not overlap."""
    if (first.layers, first.stage) != (second.layers, second.stage):
        return False
    texts = [text for text in first.perplexities if text in second.perplexities]
    if not texts:
        return False
    one, other = first.perplexities[texts[0]], second.perplexities[texts[0]]
    if not (has_interval(one) and has_interval(other)):
        return False
    return bool(one["high"] < other["low"] or other["high"] < one["low"])
