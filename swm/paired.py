"""Two models over the same documents: is the difference more than noise? And which answers changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOISE = 0.05
VERDICTS = ("no more than noise", "better", "worse")
AVERAGE = "average"


@dataclass(frozen=True)
class Paired:
    """Second minus first model on a task.

    Attributes:
        difference: of the shares answered right, -1 to 1; `low` and `high` are its 95 % interval over documents.
        p_value: two-sided, of no difference: exact McNemar test for a task, normal for the average.
        gained, lost: documents that only the second, or only the first model answers right.
    """

    task: str
    documents: int
    difference: float
    low: float
    high: float
    p_value: float
    gained: int
    lost: int

    @property
    def is_noise(self) -> bool:
        return self.p_value >= NOISE

    @property
    def verdict(self) -> str:
        return VERDICTS[0] if self.is_noise else VERDICTS[1] if self.difference > 0 else VERDICTS[2]


def paired(first: dict[str, Any], second: dict[str, Any]) -> list[Paired]:
    """One comparison for each task that both models answered, then their average.

    Args:
        first, second: what `documents.json` of a run says: by task, rows with `id` and `correct`. Documents that only
            one of them saw are left out.

    Source: McNemar 1947, exact form (binomial on the documents that changed); the average takes tasks as independent.
    """
    found, errors = [], []
    for task, rows in first.get("tasks", {}).items():
        pairs = _pairs(rows, second.get("tasks", {}).get(task, []))
        if not pairs:
            continue
        changes = [b["correct"] - a["correct"] for a, b in pairs]
        mean = math.fsum(changes) / len(changes)
        spread = math.fsum((change - mean) ** 2 for change in changes) / max(1, len(changes) - 1)
        errors.append(math.sqrt(spread / len(changes)))
        gained, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
        found.append(_with_interval(task, len(pairs), mean, errors[-1], mcnemar(gained, lost), gained, lost))
    if len(found) > 1:
        mean = math.fsum(one.difference for one in found) / len(found)
        error = math.sqrt(math.fsum(e**2 for e in errors)) / len(found)
        p_value = math.erfc(abs(mean) / error / math.sqrt(2)) if error else float(mean == 0)
        sums = [sum(getattr(one, name) for one in found) for name in ("documents", "gained", "lost")]
        found.append(_with_interval(AVERAGE, sums[0], mean, error, p_value, sums[1], sums[2]))
    return found


def mean_answers(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One model that answers each document right as often as several do; a single one as it is.

    Args:
        runs: as for `paired`; documents that not all saw are left out.
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


def _with_interval(
    task: str, documents: int, mean: float, error: float, p_value: float, gained: int, lost: int
) -> Paired:
    return Paired(task, documents, mean, mean - 1.96 * error, mean + 1.96 * error, p_value, gained, lost)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value that as many documents are gained as lost, given how many changed."""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)


def flipped(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """Documents of which one model is right and the other wrong: task, question, right answer, both answers."""
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
