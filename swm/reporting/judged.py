"""The rows of `compare` with what each model changed, against the original and against its control, and the verdict."""

from __future__ import annotations

from typing import Any

from swm.reporting.compare import flat_rows
from swm.reporting.differences import compared
from swm.reporting.verdict import verdict
from swm.workspace.runs import BASELINE

Row = dict[str, Any]


def judged(rows: list[Row]) -> list[Row]:
    """The rows, and those before recovery in them, with `against_original`, `against_control` and `verdict`.

    Reads every answer of every row: about 0.1 s for a row with 2,000 answers. The differences are as from
    `differences.difference`, None where there is nothing to compare with.

    Args:
        rows: of one or more experiments, as from `compare`, with their originals and controls.
    """
    by_run = {(row["experiment"], row["run"]): row for row in rows}
    for row in flat_rows(rows):
        original, control = (by_run.get((row["experiment"], name)) for name in (BASELINE, row["control_run"]))
        row["against_original"] = compared([original] if original else [], [row])
        row["against_control"] = compared([control] if control else [], [row])
        row["verdict"] = verdict(row)
    return rows
