"""What a study shows, in a sentence, and what its scores can tell apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from swm.evaluation.paired import ACCURACY, LOWER_IS_BETTER, SCORES, has_interval
from swm.evaluation.task_names import MOST_DOCUMENTS
from swm.plan import DEFAULT_RULE
from swm.reporting.compare import compare
from swm.reporting.differences import Measured, compared, measured
from swm.reporting.glossary import method_name
from swm.reporting.names import text_name
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


def conclusion(rows: Sequence[Row], text: str) -> str:
    """One sentence on a study: which method loses least at how many depths, and the paper's beside it; empty if no
    depth has two methods.

    Args:
        rows: of `study_rows`. text: that perplexities are of.
    """
    stage = "recovered" if any(row.stage == "recovered" and not row.control for row in rows) else "merged"
    original = next(
        (row.perplexities[text]["value"] for row in rows if row.is_original and text in row.perplexities), 0
    )
    depths: dict[int, list[Row]] = {}
    for row in rows:
        if row.stage == stage and not row.control and text in row.perplexities:
            depths.setdefault(row.layers, []).append(row)
    depths = {layers: found for layers, found in depths.items() if len({row.method for row in found}) > 1}
    if not depths or not original:
        return ""
    firsts = {layers: min(found, key=lambda row: row.perplexities[text]["value"]) for layers, found in depths.items()}
    counts = Counter(row.method or "" for row in firsts.values())
    leader = counts.most_common(1)[0][0]
    layers = sorted(layers for layers, row in firsts.items() if row.method == leader)[counts[leader] // 2]
    ahead = "at every depth" if counts[leader] == len(depths) else f"at {counts[leader]} of {len(depths)} depths"
    healed = " after healing" if stage == "recovered" else ""
    best, others = firsts[layers], [row for row in depths[layers] if row.method != leader]
    second = min(others, key=lambda row: row.perplexities[text]["value"])
    apart = best.perplexities[text].get("high", 0.0) < second.perplexities[text].get("low", 0.0)
    doubt = "" if apart else f" (its interval overlaps with that of {method_name(second.method or '')})"
    paper = next((row for row in others if row.method == DEFAULT_RULE), None)
    beside = f"; the paper's search has {paper.perplexities[text]['value'] / original:,.2f} times" if paper else ""
    return (
        f"{method_name(leader)} loses least{healed} {ahead}: with {layers} layers its perplexity on {text_name(text)} "
        f"is {best.perplexities[text]['value'] / original:,.2f} times the original's{doubt}{beside}."
    )


def threshold_conclusion(scores: Sequence[Mapping[str, Any]]) -> str:
    """Whether the scores at thresholds can tell their plans apart, and how many questions would; empty without two.

    Args:
        scores: rows with `value`, `stderr` and `documents`, of one task.
    """
    if len(scores) < 2:
        return ""
    values = [row["value"] for row in scores]
    spread, documents = max(values) - min(values), min(row["documents"] for row in scores)
    error = 1.96 * math.sqrt(2) * max(row["stderr"] for row in scores)  # of the difference of two plans
    if spread > error:
        return (
            f"The best and the worst of these plans differ by {100 * spread:.0f} points; with {documents:,} questions "
            f"differences above {100 * error:.0f} points can be told from chance."
        )
    needed = math.ceil(documents * (error / spread) ** 2 / 100) * 100 if spread else 0
    return (
        f"These scores support no conclusion: {documents:,} questions can tell apart differences above "
        f"{100 * error:.0f} points, and the largest here is {100 * spread:.0f}."
        + (f" About {needed:,} questions would be needed to confirm it." if needed else "")
    )
