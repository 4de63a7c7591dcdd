"""A plan as a `passthrough` merge of mergekit."""

from __future__ import annotations

import yaml

from swm.errors import PlanError
from swm.plan import MergePlan
from swm.registry import EXPORT_FORMATS, MERGE_RULES, ExportFormat
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run


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
    ranges: list[list[int]] = []
    for layer in plan.base_layers():
        if ranges and ranges[-1][1] == layer:
            ranges[-1][1] = layer + 1
        else:
            ranges.append([layer, layer + 1])
    slices = [{"sources": [{"model": model, "layer_range": each}]} for each in ranges]
    dtype = experiment.model_facts.get("dtype", "float32")
    return str(yaml.safe_dump({"slices": slices, "merge_method": "passthrough", "dtype": dtype}, sort_keys=False))


def _yaml(run: Run) -> str:
    return mergekit_yaml(run.experiment, run.plan)


def _fits(run: Run) -> bool:
    return fits_mergekit(run.experiment, run.plan)


EXPORT_FORMATS.register(
    ExportFormat(
        "mergekit",
        "mergekit",
        "the same layers kept by mergekit's passthrough merge, without healing",
        ".yaml",
        _yaml,
        fits=_fits,
    )
)
