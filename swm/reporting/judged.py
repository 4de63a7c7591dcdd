"""The rows of `compare` with what each model changed, against the original and against its control, and the verdict."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache

from swm.errors import ExperimentError
from swm.reporting.differences import compared, measured
from swm.reporting.row import Row
from swm.reporting.verdict import verdict
from swm.workspace.runs import BASELINE


def judged(rows: Sequence[Row], shown: Collection[tuple[str, str, str]] | None = None) -> list[Row]:
    """The rows, and those before recovery in them, with `against_original`, `against_control` and `verdict`.

    Reads every answer of every judged row and of those it is compared with. The differences are as from
    `differences.compared`, None where there is nothing to compare with.

    Args:
        rows: of one or more experiments, as from `compare`, with their originals and controls.
        shown: judge only the rows with one of these keys, see `Row.key`.
    """
    by_run = {(row.experiment, row.run): row for row in rows}
    results = cache(lambda *key: measured([by_run[key]]) if key in by_run else None)

    def judge(row: Row) -> Row:
        before = row.before_recovery and judge(row.before_recovery)
        if shown is not None and row.key not in shown:
            return replace(row, before_recovery=before)
        original = control = None
        reasons = row.not_compared
        try:
            own = results(*row.key[:2]) if row is by_run[row.key[:2]] else measured([row])
            original = compared(results(row.experiment, BASELINE), own)
            control = compared(results(row.experiment, row.control_run), own)
        except ExperimentError as error:  # a damaged file of answers
            reasons = (*reasons, str(error))
        found = replace(
            row, before_recovery=before, against_original=original, against_control=control, not_compared=reasons
        )
        return replace(found, verdict=verdict(found))

    return [judge(row) for row in rows]


def pin(rows: Sequence[Row], reference: Row) -> list[Row]:
    """The rows with `against_pinned`: how each differs from one of them, as from `differences.compared`.

    Raises:
        ExperimentError: if a file with answers is damaged.
    """
    pinned = measured([reference])
    return [replace(row, against_pinned=compared(pinned, measured([row]))) for row in rows]
