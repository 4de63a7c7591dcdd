"""A plan as a mergekit config (merge method `passthrough`)."""

from __future__ import annotations

import yaml

from swm.errors import PlanError
from swm.plan import MergePlan
from swm.registry import EXPORT_FORMATS, MERGE_RULES, ExportFormat
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run


def fits_mergekit(experiment: Experiment, plan: MergePlan) -> bool:
    """Whether mergekit can express this plan of this model."""
    model = experiment.settings.model
    keeps_layers = not (MERGE_RULES[plan.rule].combine or MERGE_RULES[plan.rule].needs_text or plan.width.ratio)
    return keeps_layers and "/" in model and not model.endswith(".gguf")


def mergekit_yaml(experiment: Experiment, plan: MergePlan) -> str:
    """The plan as a mergekit config (merge method `passthrough`); its layer ranges exclude their end.

    Raises:
        PlanError: if the plan changes weights, or mergekit cannot load the model.
    """
    model = experiment.settings.model
    if not fits_mergekit(experiment, plan):
        raise PlanError(
            f"mergekit cannot express rule {plan.rule} on {model}: its slices only keep or drop layers "
            "(rules keep_first and keep_last), of a hub id or a Hugging Face folder. Choose another format."
        )
    ranges: list[list[int]] = []
    for layer in plan.base_layers():
        if ranges and ranges[-1][1] == layer:
            ranges[-1][1] = layer + 1
        else:
            ranges.append([layer, layer + 1])
    slices = [{"sources": [{"model": model, "layer_range": layer_range}]} for layer_range in ranges]
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
        "a mergekit config that keeps the same layers, without healing",
        ".yaml",
        _yaml,
        fits=_fits,
    )
)
