"""A run's recipe as JSON, from which `python -m swm repeat FILE` repeats the run."""

from __future__ import annotations

import json

from swm.disk.files import SCHEMA
from swm.registry import EXPORT_FORMATS, ExportFormat
from swm.workspace.recipe import recipe_of
from swm.workspace.runs import Run


def recipe_json(run: Run) -> str:
    """The recipe of a run in its current state, as JSON."""
    return json.dumps({"schema": SCHEMA, **recipe_of(run).model_dump(mode="json")}, indent=1)


EXPORT_FORMATS.register(
    ExportFormat("recipe", "Recipe", "repeats the run: python -m swm repeat FILE", ".json", recipe_json)
)
