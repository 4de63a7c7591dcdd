"""Runs any registered planner on a model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from swm.errors import PlanError, SettingsError
from swm.plan import MergePlan, check_layers
from swm.planners.needed import is_fragile, needed_layers
from swm.planners.request import PlanOptions, PlanRequest
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
    keep_period: bool = False,
    **options: Unpack[PlanOptions],
) -> MergePlan:
    """A planner's plan that leaves `layers` layers.

    Args:
        planner: one of PLANNERS.
        tokens: calibration text, ids of shape (texts, length), int64, no padding.
        keep_period: leave layers of the kinds that llama.cpp takes them for by their place (`models.layer_pattern`).
            Families whose config ties kinds to places (Jamba) always keep to them.
        options: see `PlanOptions`. By default merged layers are fitted on the calibration text, which is rather short
            for that, and the model is asked which layers it needs.

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
    if options.get("seconds"):
        _check_single_process()
    else:
        check_budget(planner, options.get("budget", PLAN_BUDGET), count, layers)
    if options.get("kept") and not method.keeps:
        able = ", ".join(name for name, each in PLANNERS.items() if each.keeps)
        raise SettingsError(f"Planner {planner} tries no plans, so it cannot keep abilities. Choose one of: {able}.")
    kinds, built = (placed_kinds(model.config) if keep_period else []) or fixed_kinds(model), kinds_of(model)
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    given.setdefault("fit_tokens", lambda token_count: tokens)
    if "needed" not in given:
        given["needed"] = needed_layers(model)
    request = PlanRequest(model, tokens, count, layers, seed, kinds=kinds, fragile=is_fragile(model, built), **given)
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
