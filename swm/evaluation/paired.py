"""Compares two models on the same documents: is the difference significant, and which answers changed?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOISE = 0.05
FEWEST_DOCUMENTS = 30  # per task; no verdict with fewer
VERDICTS = ("not significant", "better", "worse", "too few documents")
AVERAGE = "average"
Z_95 = 1.959963984540054  # normal quantile for a two-sided 95 % interval


@dataclass(frozen=True)
class Paired:
    """Difference of two models on a task: second minus first.

    Attributes:
        difference: of the shares of correct answers, -1 to 1; `low` and `high` are its 95 % interval over documents,
            which contains 0 if and only if `p_value` is 0.05 or more.
        p_value: two-sided, for the hypothesis of no difference: exact McNemar test for a task, normal for the average.
        gained, lost: documents that only the second or only the first model answers correctly.
        fewest: documents of the task, or of the smallest task in the average.
    """

    task: str
    documents: int
    difference: float
    low: float
    high: float
    p_value: float
    gained: int
    lost: int
    fewest: int

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        if self.fewest < FEWEST_DOCUMENTS:
            return VERDICTS[3]
        return VERDICTS[0] if self.p_value >= NOISE else VERDICTS[1] if self.difference > 0 else VERDICTS[2]


def paired(first: dict[str, Any], second: dict[str, Any]) -> list[Paired]:
    """One comparison for each task that both models answered, then their average.

    Args:
        first, second: content of a run's `documents.json`: by task, rows with `id` and `correct`. Documents that only
            one of them saw are ignored.

    Source: McNemar 1947, exact form (binomial on the documents that changed), with the matching exact interval (Clopper
    and Pearson 1934, of the share gained among the changed; scipy). Answers averaged over several runs are not binary:
    they get a t interval and t test of the mean. The average treats tasks as independent and normal; each task's
    standard error adds half a document to each kind of change (Bonett and Price 2012), so that it is never 0.
    """
    comparisons, errors = [], []
    for task, rows in first.get("tasks", {}).items():
        pairs = _pairs(rows, second.get("tasks", {}).get(task, []))
        if not pairs:
            continue
        changes = [round(b["correct"] - a["correct"], 9) for a, b in pairs]  # means over runs carry rounding errors
        mean = math.fsum(changes) / len(changes)
        gained, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
        errors.append(_error(changes, gained, lost))
        low, high, p_value = _exact(gained, lost, len(pairs)) if _whole(changes) else _by_t(changes)
        comparisons.append(Paired(task, len(pairs), mean, low, high, p_value, gained, lost, len(pairs)))
    if len(comparisons) > 1:
        mean = math.fsum(task.difference for task in comparisons) / len(comparisons)
        error = math.sqrt(math.fsum(e**2 for e in errors)) / len(comparisons)
        p_value = math.erfc(abs(mean) / error / math.sqrt(2))
        sums = [sum(getattr(task, name) for task in comparisons) for name in ("documents", "gained", "lost")]
        low, high = mean - Z_95 * error, mean + Z_95 * error
        fewest = min(task.fewest for task in comparisons)
        comparisons.append(Paired(AVERAGE, sums[0], mean, low, high, p_value, sums[1], sums[2], fewest))
    return comparisons


def mean_answers(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answers of several runs, averaged for each document; those of a single run unchanged.

    Args:
        runs: as for `paired`; documents that not every run saw are ignored.
    """
    if len(runs) == 1:
        return runs[0]
    tasks: dict[str, list[dict[str, Any]]] = {}
    for task, rows in runs[0].get("tasks", {}).items():
        others = [{row["id"]: row["correct"] for row in run.get("tasks", {}).get(task, [])} for run in runs[1:]]
        tasks[task] = [
            {
                "id": row["id"],
                "correct": math.fsum([row["correct"], *(other[row["id"]] for other in others)]) / len(runs),
            }
            for row in rows
            if all(row["id"] in other for other in others)
        ]
    return {"tasks": tasks}


def _whole(changes: Sequence[float]) -> bool:
    return all(change in (-1.0, 0.0, 1.0) for change in changes)


def _error(changes: Sequence[float], gained: int, lost: int) -> float:
    """Standard error of the mean change."""
    n = len(changes)
    if _whole(changes):
        return math.sqrt(gained + lost + 1 - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    mean = math.fsum(changes) / n
    return math.sqrt(math.fsum((change - mean) ** 2 for change in changes) / max(1, n - 1) / n) or 1 / (n + 2)


def _exact(gained: int, lost: int, documents: int) -> tuple[float, float, float]:
    """Interval of the difference and p-value, given how many documents changed."""
    from scipy.stats import binomtest  # takes half a second to import

    if not (changed := gained + lost):
        # Nothing changed, so the direction is unknown: use the exact interval of a share that was never observed.
        most = 1 - (NOISE / 2) ** (1 / documents)
        return -most, most, 1.0
    test = binomtest(gained, changed)
    share = test.proportion_ci(1 - NOISE, method="exact")
    low, high = ((2 * end - 1) * changed / documents for end in (share.low, share.high))
    return float(low), float(high), float(test.pvalue)


def _by_t(changes: Sequence[float]) -> tuple[float, float, float]:
    from scipy.stats import ttest_1samp

    if len(set(changes)) < 2:  # no spread, or a single document: no conclusion possible
        return -1.0, 1.0, 1.0
    test = ttest_1samp(changes, 0.0)
    interval = test.confidence_interval(1 - NOISE)
    return max(-1.0, float(interval.low)), min(1.0, float(interval.high)), float(test.pvalue)


def flipped(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """Documents that one model answers correctly and the other not: task, question, correct answer, both answers."""
    return [
        {
            "task": task,
            "verdict": "gained" if b["correct"] > a["correct"] else "lost",
            "question": a["question"],
            "right": a["right"],
            "first": a["picked"],
            "second": b["picked"],
        }
        for task, rows in first.get("tasks", {}).items()
        for a, b in _pairs(rows, second.get("tasks", {}).get(task, []))
        if a["correct"] != b["correct"]
    ]


def _pairs(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    by_id = {row["id"]: row for row in second}
    return [(row, by_id[row["id"]]) for row in first if row["id"] in by_id]
