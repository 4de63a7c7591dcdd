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
from swm.reporting.study_charts import AXES, UPWARDS, studied
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


def conclusion(rows: Sequence[Row], figure_of: str) -> str:
    """One sentence on a study: which method is ahead at how many depths, and the paper's beside it; empty if no depth
    has two methods.

    Args:
        rows: of `study_rows`. figure_of: as of `depths_chart`.
    """
    stage = "recovered" if any(row.stage == "recovered" and not row.control for row in rows) else "merged"
    original = next((value for row in rows if row.is_original and (value := studied(row, figure_of))), None)
    sign = -1 if figure_of in UPWARDS else 1
    depths: dict[int, list[tuple[float, float, float, Row]]] = {}
    for row in rows:
        if row.stage == stage and not row.control and not row.is_original and (value := studied(row, figure_of)):
            low, high = sorted((sign * value[1], sign * value[2]))
            depths.setdefault(row.layers, []).append((sign * value[0], low, high, row))
    depths = {layers: sorted(found, key=_value) for layers, found in depths.items() if len(found) > 1}
    if not depths or not original:
        return ""
    counts = Counter(found[0][3].method or "" for found in depths.values())
    leader = counts.most_common(1)[0][0]
    layers = sorted(layers for layers, found in depths.items() if found[0][3].method == leader)[counts[leader] // 2]
    best, *others = depths[layers]
    same = [each for each in others if each[3].windows == best[3].windows and each[0] == best[0]]
    others = [each for each in others if each not in same]
    names = " and ".join(method_name(each[3].method or "") for each in (best, *same))
    same_words = " (the same model)" if same else ""
    ahead = "at every depth" if counts[leader] == len(depths) else f"at {counts[leader]} of {len(depths)} depths"
    verb = ("is" if not same else "are") + " ahead"
    healed = " after healing" if stage == "recovered" else ""
    near = [each for each in others if each[1] <= best[2]]
    doubt = f" (within noise of {method_name(near[0][3].method or '')})" if near else ""
    paper = next((each for each in others if each[3].method == DEFAULT_RULE), None)
    beside = f"; the paper's search: {_said(figure_of, sign * paper[0], original[0])}" if paper else ""
    return (
        f"{names}{same_words} {verb}{healed} {ahead}: with {layers} layers, {'their' if same else 'its'} "
        f"{_subject(figure_of)} is "
        f"{_said(figure_of, sign * best[0], original[0])}{doubt}{beside}."
    )


def _subject(figure_of: str) -> str:
    """What a sentence says the number is."""
    return AXES[figure_of].split(",")[0] if figure_of in SCORES else f"perplexity on {text_name(figure_of)}"


def _value(each: tuple[float, float, float, Row]) -> float:
    return each[0]


def _said(figure_of: str, value: float, original: float) -> str:
    """A number beside the original's."""
    if figure_of not in SCORES:
        return f"{value / original:,.2f} times the original's"
    unit = " %" if figure_of == ACCURACY else ""
    digits = 1 if figure_of == ACCURACY else 2
    return f"{value:.{digits}f}{unit} (original: {original:.{digits}f}{unit})"


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
