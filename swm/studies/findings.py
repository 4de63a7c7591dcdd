"""What a study's scores can tell apart."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from swm.evaluation.paired import LOWER_IS_BETTER, SCORES, has_interval
from swm.evaluation.task_names import MOST_DOCUMENTS
from swm.reporting.differences import compared, measured
from swm.studies.rows import study_groups
from swm.workspace.experiments import Experiment

NEAR = 3.0  # times the original's perplexity: beyond it models are ruined, which every score sees


def pairs_decided(experiment: Experiment, runs: set[str]) -> list[dict[str, Any]]:
    """How often each score tells two methods apart that perplexity tells apart.

    A pair are two methods at the same depth and stage whose perplexity intervals do not overlap, on the first text. A
    score decides it if the 95 % interval of the paired difference of the tasks' average leaves out 0.

    Args:
        runs: only methods with one of these runs.

    Returns:
        A row for each stage: `stage`, `pairs`, `documents` (of the smallest task), `decided` (by score, how many pairs
        it decides) and `against_perplexity` (how many of these in favour of the method with the higher perplexity).
        Where some models are ruined, another row (`near` is true) for the pairs within NEAR times the original's
        perplexity.
    """
    groups = study_groups(experiment)
    original = next((row["perplexity"] for row, _ in groups if row["method"] == "original"), None)
    table = [
        (row, measured(group))
        for row, group in groups
        if runs & {run["run"] for run in group} and row["method"] != "original"
    ]
    counted: dict[tuple[str, bool], dict[str, Any]] = {}
    for (first, one), (second, other) in combinations(table, 2):
        if (first["layers"], first["stage"]) != (second["layers"], second["stage"]) or not _apart(first, second):
            continue
        scores = (compared(one, other) or {"scores": {}})["scores"]
        if {*SCORES} <= {*scores}:
            highest = max(first["perplexity"], second["perplexity"])
            for near in {False, bool(original and highest <= NEAR * original)}:
                counts = counted.setdefault((first["stage"], near), _no_pairs(first["stage"], near))
                _count(counts, scores, second_is_worse=second["perplexity"] > first["perplexity"])
    ordered = [counted[key] for key in sorted(counted, key=lambda key: (key[0], key[1]))]
    whole = {row["stage"]: row["pairs"] for row in ordered if not row["near"]}
    return [row for row in ordered if not row["near"] or row["pairs"] < whole[row["stage"]]]


def _no_pairs(stage: str, near: bool) -> dict[str, Any]:
    counts = {name: dict.fromkeys(SCORES, 0) for name in ("decided", "against_perplexity")}
    return {"stage": stage, "near": near, "pairs": 0, "documents": None, **counts}


def _count(counts: dict[str, Any], scores: dict[str, Any], second_is_worse: bool) -> None:
    counts["pairs"] += 1
    counts["documents"] = min(scores["accuracy"]["fewest"], counts["documents"] or MOST_DOCUMENTS)
    for score in SCORES:
        decided = scores[score]["low"] > 0 or scores[score]["high"] < 0
        second_is_better = (scores[score]["difference"] > 0) != (score in LOWER_IS_BETTER)
        counts["decided"][score] += decided
        counts["against_perplexity"][score] += decided and second_is_better == second_is_worse


def _apart(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether the intervals of the first text that both have perplexities of do not overlap."""
    texts = [text for text in first["perplexities"] if text in second["perplexities"]]
    if not texts:
        return False
    one, other = first["perplexities"][texts[0]], second["perplexities"][texts[0]]
    if not (has_interval(one) and has_interval(other)):
        return False
    return bool(one["high"] < other["low"] or other["high"] < one["low"])
