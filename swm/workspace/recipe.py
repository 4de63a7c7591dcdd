"""A run in one file: model, texts, plan, recovery, evaluation, for `swm repeat`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from swm import __version__
from swm.checked import explained, from_object
from swm.disk.files import read_json
from swm.errors import SettingsError
from swm.plan import MergePlan
from swm.settings import ExperimentSettings, RecoverySettings
from swm.workspace.origin import known_source, source_of
from swm.workspace.runs import Run


def _origin(data: Any) -> dict[str, Any] | None:
    """What chose the windows, if its name is registered here; the source comes from the registry, not the recipe."""
    if not isinstance(data, dict) or not known_source(data.get("planner")):
        return None
    settings = data.get("settings")
    return {
        "planner": data["planner"],
        "source": source_of(data["planner"]),
        "settings": settings if isinstance(settings, dict) else {},
    }


class Recipe(BaseModel):
    """Everything that defines a run; `recovery` None means no healing, `limit` None all documents."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", arbitrary_types_allowed=True)

    made_with: str = f"Sliding-Window Merging Studio {__version__}"
    experiment: str
    run: str
    settings: Annotated[ExperimentSettings, from_object(lambda data: ExperimentSettings(**data))]
    plan: Annotated[MergePlan, from_object(MergePlan.from_dict), PlainSerializer(MergePlan.to_dict)]
    recovery: Annotated[RecoverySettings | None, from_object(lambda data: RecoverySettings(**data))]
    limit: int | None
    origin: Annotated[dict[str, Any] | None, BeforeValidator(_origin)] = None
    text_hash: str = ""


def recipe_of(run: Run) -> Recipe:
    """The recipe of a run as it is now."""
    recovery, experiment = run.settings.get("recovery"), run.experiment
    names = [field.name for field in fields(RecoverySettings)]
    return Recipe(
        experiment=experiment.name,
        run=run.name,
        settings=experiment.settings,
        plan=run.plan,
        recovery=RecoverySettings(**{name: recovery[name] for name in names if name in recovery}) if recovery else None,
        limit=(run.scores() or {}).get("limit", 100),
        origin=run.settings.get("origin"),
        text_hash=experiment.text_hash,
    )


def read_recipe(file: Path) -> Recipe:
    """The recipe in a file; raises ExperimentError or SettingsError if it is unreadable or not a recipe."""
    return parsed_recipe(read_json(file))


def parsed_recipe(data: dict[str, Any]) -> Recipe:
    """The recipe in a file's data; raises SettingsError, naming what is missing or wrong, if it is not one."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise SettingsError(
            f"This is not a recipe: {explained(error)}. Use the recipe.json of an exported model."
        ) from None
