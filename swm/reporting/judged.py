"""The rows of `compare` with what each model changed, against the original and against its control, and the verdict."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache

from swm.errors import ExperimentError
from swm.reporting.compare import compare, flat_rows
from swm.reporting.differences import Measured, compared, measured
from swm.reporting.row import Row
from swm.reporting.seeds import over_seeds
from swm.reporting.verdict import verdict
from swm.workspace.experiments import Experiment
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


def judged_over_seeds(experiment: Experiment, keys: Collection[tuple[str, str, str]]) -> list[Row]:
    """The rows of an experiment with one of these keys as from `judged`, those that differ only in a seed as one."""
    rows = compare(experiment)
    by_run = {row.run: row for row in rows}
    found = []
    for row, group in over_seeds(experiment, flat_rows(rows)):
        if row.key not in keys:
            continue
        try:
            found.append(judged_group(row, group, measured(group), by_run))
        except ExperimentError as error:  # a damaged file of answers
            row = replace(row, not_compared=(*row.not_compared, str(error)))
            found.append(replace(row, verdict=verdict(row)))
    return found


def judged_group(row: Row, group: Sequence[Row], own: Measured | None, by_run: Mapping[str, Row]) -> Row:
    """A row of means over `group` with what its models changed, against the original and against their controls.

    Args:
        own: the results of `group`. by_run: rows of `compare` of the same experiment.

    Raises:
        ExperimentError: if a file with answers is damaged.
    """
    controls = [control for member in group if member.control_run and (control := by_run.get(member.control_run))]
    row = replace(
        row,
        against_original=compared(measured([by_run[BASELINE]]), own),
        against_control=compared(measured(controls), own) if len(controls) == len(group) else None,
    )
    return replace(row, verdict=verdict(row))


def pin(rows: Sequence[Row], reference: Row, every: Sequence[Row] = ()) -> list[Row]:
    """The rows with `against_pinned`: how each differs from one of them, as from `differences.compared`.

    Args:
        every: rows as from `flat_rows`, among which those behind rows of means are found.

    Raises:
        ExperimentError: if a file with answers is damaged.
    """
    by_key = {row.key: row for row in every}

    def results(row: Row) -> Measured | None:
        names = row.runs if row.stage == "recovered" else ()
        members = [by_key[row.experiment, name, row.stage] for name in names]
        return measured(members or [row])

    pinned = results(reference)
    return [replace(row, against_pinned=compared(pinned, results(row))) for row in rows]
