"""The run that pages lead with: not the newest, but the smallest model that is still good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from swm.plan import DEFAULT_RULE
from swm.reporting.compare import same_text
from swm.reporting.preview import WITHIN
from swm.reporting.row import Row
from swm.workspace.runs import BASELINE


def headline(rows: Sequence[Row], every: Sequence[Row] = ()) -> int:
    """The place of the row to lead with, among rows as from `flat_rows`.

    The smallest model whose perplexity is at most WITHIN times its original's (of equal ones the best); if there is
    none, the one that loses least. Controls and originals only if there is nothing else, unscored ones the same.

    Args:
        every: rows to find the originals among, where `rows` are a part of them.
    """
    originals = {row.experiment: row for row in every or rows if row.run == BASELINE}

    def rank(place: int) -> tuple[Any, ...]:
        row = rows[place]
        ratio = perplexity_ratio(row, originals.get(row.experiment))
        candidate = row.run != BASELINE and not row.control
        if ratio is None:
            return candidate, False, False, row.created, place
        within = ratio <= WITHIN
        return candidate, True, within, -row.parameters if within else 0, -ratio, row.created, place

    return max(range(len(rows)), key=rank)


def leading(rows: Sequence[Row], most: int) -> list[int]:
    """The places of the rows to show first: originals, the headline, its control and the paper's method at its depth,
    then what loses least, of that depth before others; in their order."""
    if len(rows) <= most:
        return list(range(len(rows)))
    originals = {row.experiment: row for row in rows if row.run == BASELINE}
    best = rows[headline(rows)]

    def rank(place: int) -> tuple[Any, ...]:
        row = rows[place]
        needed = row.run == BASELINE or row is best or (row.experiment, row.run) == (best.experiment, best.control_run)
        ratio = perplexity_ratio(row, originals.get(row.experiment))
        same_depth = (row.stage, row.layers) == (best.stage, best.layers)
        needed = needed or (same_depth and row.chosen_by == DEFAULT_RULE)
        return not needed, ratio is None, not same_depth, ratio or 0.0

    return sorted(sorted(range(len(rows)), key=rank)[:most])


def perplexity_ratio(row: Row, original: Row | None) -> float | None:
    """Perplexity relative to the original's: the geometric mean over texts that both read alike; None without any."""
    if original is None:
        return None
    logs = [
        math.log(entry["value"] / original.perplexities[text]["value"])
        for text, entry in row.perplexities.items()
        if (same := original.perplexities.get(text)) and same_text(entry, same)
    ]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None
