"""A run in one file: model, texts, plan, recovery, evaluation, for `swm repeat`; and mergekit's form of a plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from swm import __version__
from swm.errors import PlanError, SettingsError, SwmError
from swm.plan import MergePlan
from swm.registry import MERGE_RULES
from swm.settings import ExperimentSettings, RecoverySettings
from swm.workspace.experiments import Experiment, known_source, source_of
from swm.workspace.files import read_json
from swm.workspace.runs import Run


@dataclass(frozen=True)
class Recipe:
    """What makes a run; `recovery` None leaves healing out, `limit` None takes all documents."""

    experiment: str
    run: str
    settings: ExperimentSettings
    plan: MergePlan
    recovery: RecoverySettings | None
    limit: int | None
    origin: dict[str, Any] | None = None
    text_hash: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "made_with": f"Sliding-Window Merging Studio {__version__}",
            "experiment": self.experiment,
            "run": self.run,
            "settings": asdict(self.settings),
            "plan": self.plan.to_dict(),
            "recovery": asdict(self.recovery) if self.recovery else None,
            "limit": self.limit,
            "origin": self.origin,
            "text_hash": self.text_hash,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """Raises SettingsError, naming what is missing or wrong."""
        try:
            recovery, limit = data["recovery"], data["limit"]
            return cls(
                str(data["experiment"]),
                str(data["run"]),
                ExperimentSettings(**data["settings"]),
                MergePlan.from_dict(data["plan"]),
                RecoverySettings(**recovery) if recovery else None,
                None if limit is None else int(limit),
                _origin(data.get("origin")),
                str(data.get("text_hash", "")),
            )
        except SwmError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise SettingsError(f"This is not a recipe: {error}. Take the recipe.json of an exported model.") from None


def _origin(data: Any) -> dict[str, Any] | None:
    """What chose the windows, by a name that we know: its source is ours to say, not the recipe's."""
    if not isinstance(data, dict) or not known_source(data.get("planner")):
        return None
    settings = data.get("settings")
    return {
        "planner": data["planner"],
        "source": source_of(data["planner"]),
        "settings": settings if isinstance(settings, dict) else {},
    }


def recipe_of(run: Run) -> Recipe:
    """The recipe of a run as it stands."""
    recovery = run.settings.get("recovery")
    fields = asdict(RecoverySettings())
    settings = RecoverySettings(**{name: recovery[name] for name in fields if name in recovery}) if recovery else None
    scores = run.scores() or {}
    origin = run.settings.get("origin")
    limit = scores.get("limit", 100)
    of = run.experiment
    return Recipe(of.name, run.name, of.settings, run.plan, settings, limit, origin, of.text_hash)


def read_recipe(file: Path) -> Recipe:
    """Raises ExperimentError or SettingsError, if the file cannot be read or is no recipe."""
    return Recipe.from_dict(read_json(file))


def fits_mergekit(experiment: Experiment, plan: MergePlan) -> bool:
    """Whether mergekit can say this plan of this model."""
    model = experiment.settings.model
    whole = not (MERGE_RULES[plan.rule].combine or MERGE_RULES[plan.rule].needs_text or plan.width.ratio)
    return whole and "/" in model and not model.endswith(".gguf")


def mergekit_yaml(experiment: Experiment, plan: MergePlan) -> str:
    """The plan as a `passthrough` merge of mergekit; ranges there leave the last layer out.

    Raises:
        PlanError: if the rule adds layers up, which mergekit's slices cannot say, or mergekit cannot load the model.
    """
    model = experiment.settings.model
    if not fits_mergekit(experiment, plan):
        raise PlanError(
            f"Rule {plan.rule} on {model} cannot be said in mergekit's slices: they only keep or drop layers "
            "(keep_first, keep_last), of a hub id or a Hugging Face folder."
        )
    kept = [window.last if MERGE_RULES[plan.rule].base == "last" else window.first for window in plan.kept_layers()]
    ranges: list[list[int]] = []
    for layer in kept:
        if ranges and ranges[-1][1] == layer:
            ranges[-1][1] = layer + 1
        else:
            ranges.append([layer, layer + 1])
    slices = [{"sources": [{"model": model, "layer_range": each}]} for each in ranges]
    dtype = experiment.model_facts.get("dtype", "float32")
    return str(yaml.safe_dump({"slices": slices, "merge_method": "passthrough", "dtype": dtype}, sort_keys=False))
