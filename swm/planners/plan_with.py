"""A plan by any registered method, for a model in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swm.errors import SettingsError
from swm.plan import MergePlan, check_layers
from swm.planners.request import PlanRequest
from swm.progress import Progress, no_progress
from swm.registry import PLANNERS
from swm.settings import PLAN_BUDGET

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def plan_with(
    planner: str,
    model: PreTrainedModel,
    tokens: Tensor,
    layers: int,
    seed: int = 1234,
    *,
    fast: bool = False,
    budget: int = PLAN_BUDGET,
    fit_tokens: Callable[[int], Tensor] | None = None,
    progress: Progress = no_progress,
) -> MergePlan:
    """The plan of a method that leaves so many layers.

    Args:
        planner: one of PLANNERS.
        tokens: calibration text, ids of shape (texts, length), int64, no padding.
        fast: similarities in bfloat16, which can be 0.001 off.
        budget: plans to try at most, for planners that take one.
        fit_tokens: gives about so many tokens of text to fit merged layers on; by default the calibration text, which
            is short for it.

    Raises:
        SettingsError: if there is no such planner, the model cannot have so many layers left, or the budget is too
            small. PlanError: if the method finds no such plan.
    """
    from swm.models.decoder import find_decoder
    from swm.models.layer_outputs import check_tokens

    check_tokens(tokens)
    method, count = PLANNERS.check(planner), len(find_decoder(model).layers)
    check_layers(layers, count)
    check_budget(planner, budget, count, layers)
    text = fit_tokens or (lambda wanted: tokens)
    return method.find(PlanRequest(model, tokens, count, layers, seed, fast, budget, text, progress))


def check_budget(planner: str, budget: int, layer_count: int, layers: int) -> None:
    """Raise SettingsError if a planner that takes a budget could not try what it has to try with it."""
    needed = PLANNERS[planner].least_budget
    if needed is None or layers == layer_count:
        return
    least = needed(layer_count, layers)
    if not least <= budget <= 1_000_000:
        raise SettingsError(
            f"--budget {budget} is out of range. To leave {layers} of {layer_count} layers choose {least:,} to "
            "1,000,000 plans: each layer once, and some for every further one that goes."
        )
