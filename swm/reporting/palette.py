"""Colours of pages, charts and report."""

from __future__ import annotations

from collections.abc import Sequence

from swm.registry import MERGE_RULES, PLANNERS
from swm.reporting.row import Row
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE

BETTER, WORSE = "#2f6fde", "#d9730d"
ORIGINAL = "#737c8c"
WINDOW_COLOURS = ("#0072b2", "#b5568c", "#00835f", "#a6761d", "#7b68b5", "#3d87b5")
MODEL_COLOURS = (
    "#1f8fd6",
    "#12a37a",
    "#cf6aa6",
    "#c08a2d",
    "#9280d6",
    "#1fb5b5",
    "#e36464",
    "#8a9c35",
    "#5bb8ee",
    "#d58fc8",
)  # legible as thin lines on white and on black
METHOD_COLOURS = (
    "#2f6fde", "#d9730d", "#12a37a", "#cf6aa6", "#c08a2d", "#9280d6", "#1fb5b5", "#6b7280", "#d94a4a", "#7f9131",
    "#5bb8ee", "#e0a30b", "#7bb661", "#a8567a", "#8c6d5a",
)  # fmt: skip
UNHEALED = 0.45  # opacity of a model that was healed later, beside the healed one of the same colour


def method_colour(method: str) -> str:
    """The colour of a method in every chart: of a planner, or of the sliding-window search with a merge rule."""
    names = [*PLANNERS, *MERGE_RULES]
    chosen = method.split(" + ")[0]
    return METHOD_COLOURS[names.index(chosen) % len(METHOD_COLOURS)] if chosen in names else ORIGINAL


def model_colours(experiment: Experiment) -> dict[str, str]:
    """A colour for each run, the same on every page: grey for the original, the others in the order of their creation.

    With more runs than MODEL_COLOURS has, colours repeat.
    """
    runs = [run for run in experiment.runs() if not run.is_baseline]
    runs.sort(key=lambda run: (run.settings.get("created", 0.0), run.name))
    colours = {run.name: MODEL_COLOURS[place % len(MODEL_COLOURS)] for place, run in enumerate(runs)}
    return {BASELINE: ORIGINAL, **colours}


def row_colours(rows: Sequence[Row], paler: bool = True) -> list[str]:
    """The colour of each row of `compare`; a run before its healing has that of the healed one, `paler`."""
    names = dict.fromkeys(row.experiment for row in rows)
    colours = {name: model_colours(Experiment.open(name)) for name in names}
    healed = {(row.experiment, row.run) for row in rows if row.stage == "recovered" and paler}
    return [
        _pale(colour) if row.stage == "merged" and (row.experiment, row.run) in healed else colour
        for row in rows
        for colour in (colours[row.experiment][row.run],)
    ]


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{UNHEALED})"
