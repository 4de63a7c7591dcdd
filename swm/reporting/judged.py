"""The rows of `compare` with what each model changed, against the original and against its control, and the verdict."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any

from swm.errors import ExperimentError
from swm.reporting.compare import flat_rows
from swm.reporting.differences import compared, measured
from swm.reporting.verdict import verdict
from swm.workspace.runs import BASELINE

Row = dict[str, Any]


def judged(rows: list[Row], shown: Collection[tuple[str, str, str]] | None = None) -> list[Row]:
    """The rows, and those before recovery in them, with `against_original`, `against_control` and `verdict`.

    Reads every answer of every judged row and of those it is compared with. The differences are as from
    `differences.compared`, None where there is nothing to compare with.

    Args:
        rows: of one or more experiments, as from `compare`, with their originals and controls.
        shown: judge only the rows with one of these keys, see `key_of`.
    """
    by_run = {(row["experiment"], row["run"]): row for row in rows}
    results = cache(lambda key: measured([by_run[key]]) if key in by_run else None)
    for row in flat_rows(rows):
        if shown is not None and key_of(row) not in shown:
            continue
        row["against_original"] = row["against_control"] = None
        try:
            own = results(key_of(row)[:2]) if row is by_run[key_of(row)[:2]] else measured([row])
            row["against_original"] = compared(results((row["experiment"], BASELINE)), own)
            row["against_control"] = compared(results((row["experiment"], row["control_run"])), own)
        except ExperimentError as error:  # a damaged file of answers
            row["not_compared"] = [*row["not_compared"], str(error)]
        row["verdict"] = verdict(row)
    return rows


def pin(rows: list[Row], reference: Row) -> None:
    """Add `against_pinned` to each row: how it differs from one of them, as from `differences.compared`.

    Raises:
        ExperimentError: if a file with answers is damaged.
    """
    pinned = measured([reference])
    for row in rows:
        row["against_pinned"] = compared(pinned, measured([row]))


def key_of(row: Row) -> tuple[str, str, str]:
    """What identifies a row: experiment, run and stage."""
    return row["experiment"], row["run"], row["stage"]
