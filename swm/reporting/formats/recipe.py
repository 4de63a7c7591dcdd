"""A run's recipe as JSON: what `python -m swm repeat FILE` makes the same run from."""

from __future__ import annotations

import json

from swm.registry import EXPORT_FORMATS, ExportFormat
from swm.workspace.files import SCHEMA
from swm.workspace.recipe import recipe_of
from swm.workspace.runs import Run


def recipe_json(run: Run) -> str:
    """The recipe of a run as it is now."""
    return json.dumps({"schema": SCHEMA, **recipe_of(run).model_dump(mode="json")}, indent=1)


EXPORT_FORMATS.register(
    ExportFormat("recipe", "Recipe", "makes the run again: python -m swm repeat FILE", ".json", recipe_json)
)
