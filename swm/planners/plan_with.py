"""Runs any registered planner on a model in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from swm.errors import PlanError, SettingsError
from swm.plan import MergePlan, Needed, check_layers
from swm.planners.needed import is_fragile, needed_layers
from swm.planners.request import PlanRequest
from swm.progress import Progress, no_progress
from swm.registry import PLANNERS
from swm.settings import PLAN_BUDGET

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from swm.search.tried import Losses


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
    keep_period: bool = False,
    losses: Losses | None = None,
    seconds: float | None = None,
    finalists: dict[str, Any] | None = None,
    needed: Needed | None = None,
    progress: Progress = no_progress,
) -> MergePlan:
    """A planner's plan that leaves `layers` layers.

    Args:
        planner: one of PLANNERS.
        tokens: calibration text, ids of shape (texts, length), int64, no padding.
        fast: similarities in bfloat16, which can be off by 0.001.
        budget: maximum number of plans to try, for planners that take a budget.
        fit_tokens: given a number of tokens, returns about that much text to fit merged layers on; by default the
            calibration text, which is rather short for that.
        keep_period: leave layers of the kinds that llama.cpp takes them for by their place (`models.layer_pattern`).
            Families whose config ties kinds to places (Jamba) always keep to them.
        losses: of plans tried before with the same model and text; those tried now are added. So a search that was
            interrupted goes on where it stopped, and one for another number of layers starts with what it can use.
        seconds: about how long a planner with a budget may search, in place of that budget.
        needed: as from `needed_layers`, which is asked if this is None.
        finalists: filled with how the chosen plan compares with the last others, see `PlanRequest`.

    Raises:
        SettingsError: if the planner, the number of layers, the budget or the time limit is invalid.
        PlanError: if the planner finds no such plan.
    """
    from swm.models.decoder import find_decoder
    from swm.models.layer_facts import fixed_kinds, kinds_of
    from swm.models.layer_outputs import check_tokens
    from swm.models.layer_pattern import placed_kinds

    check_tokens(tokens)
    method, count = PLANNERS.check(planner), len(find_decoder(model).layers)
    check_layers(layers, count)
    if seconds:
        _check_single_process()
    else:
        check_budget(planner, budget, count, layers)
    text = fit_tokens or (lambda token_count: tokens)
    kinds, built = (placed_kinds(model.config) if keep_period else []) or fixed_kinds(model), kinds_of(model)
    needed = needed_layers(model) if needed is None else needed
    fragile = is_fragile(model, built)
    request = PlanRequest(model, tokens, count, layers, seed, fast, budget, text, kinds, needed, fragile=fragile)
    request = replace(request, seconds=seconds, progress=progress, losses={} if losses is None else losses)
    request = replace(request, finalists={} if finalists is None else finalists)
    plan = method.find(request)
    _check(plan, planner, request)
    return plan


def _check_single_process() -> None:
    """Raise SettingsError if a time limit could end each of several processes at another plan."""
    from swm.models.processes import world_size

    if world_size() > 1:
        raise SettingsError(
            "A time limit can give each process a different plan: choose a budget, or start a single process."
        )


def _check(plan: MergePlan, planner: str, request: PlanRequest) -> None:
    """Raise PlanError if a planner's plan does not keep the layers that it must."""
    if broken := plan.out_of_place(request.kinds):
        raise PlanError(
            f"Planner {planner} cannot keep the kinds of layers in their places (layers {broken} would change). Choose "
            "another planner."
        )
    if plan.lost(request.needed):
        raise PlanError(
            f"Planner {planner} leaves {request.layers} layers of which none is of a kind that "
            f"{type(request.model).__name__} needs to generate text. Choose another planner or more layers."
        )
    if plan.layers_left != request.layers:
        raise ValueError(f"Planner {planner} left {plan.layers_left} layers instead of {request.layers}.")


def check_budget(planner: str, budget: int, layer_count: int, layers: int) -> None:
    """Raise SettingsError if the budget is too small or too large for a planner that takes one."""
    least_budget = PLANNERS[planner].least_budget
    if least_budget is None or layers == layer_count:
        return
    least = least_budget(layer_count, layers)
    if not least <= budget <= 1_000_000:
        raise SettingsError(
            f"--budget {budget} is out of range: leaving {layers} of {layer_count} layers needs at least {least:,} "
            f"plans (each layer once, and some for every further layer to drop). Choose {least:,} to 1,000,000."
        )
