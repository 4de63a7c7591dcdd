"""Shortened LLaMA (Taylor+), arXiv:2402.02834: drops, all at once, the layers of lowest weight times gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from swm.plan import MergePlan, dropped_plan
from swm.planners.drops import lowest_layers
from swm.planners.request import PlanRequest
from swm.registry import PLANNERS, Planner

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

KEPT_BELOW, KEPT_ABOVE = 4, 2  # layers that "Taylor+" never drops


def find(request: PlanRequest) -> MergePlan:
    """The plan without the layers of lowest importance; the first four and the last two layers stay."""
    count = request.layer_count
    protected = {*range(KEPT_BELOW), *range(count - KEPT_ABOVE, count)}
    importances = enumerate(taylor_importances(request.model, request.tokens))
    values = [math.inf if layer in protected else value for layer, value in importances]
    return dropped_plan(count, lowest_layers(values, request.drop, request.kinds, request.needed))


def taylor_importances(model: PreTrainedModel, tokens: Tensor) -> list[float]:
    """Importance of each layer: the sum of |weight * gradient of the loss| over its matrices (section 3.1).

    Memory: the gradients of all layers.
    """
    import torch

    from swm.models.decoder import find_decoder
    from swm.models.gradients import loss_gradients

    layers = [_matrices(layer) for layer in find_decoder(model).layers]
    weights = [weight for matrices in layers for weight in matrices]
    gradients = iter(loss_gradients(model, tokens, weights))
    return [
        sum(float((weight.detach().float() * next(gradients)).abs().sum(dtype=torch.float64)) for weight in matrices)
        for matrices in layers
    ]


def _matrices(layer: nn.Module) -> list[nn.Parameter]:
    from swm.merging.apply import projection_names

    names = projection_names(layer)
    return [weight for name, weight in layer.named_parameters() if name in names and weight.ndim >= 2]


PLANNERS.register(
    Planner(
        "taylor",
        "Shortened LLaMA Taylor+ (taylor)",
        "drops the layers of lowest weight times gradient, all at once",
        "Shortened LLaMA by Taylor importance, arXiv:2402.02834",
        find,
        whole_model=True,
        halves=True,
        tokens_read=lambda layer_count, layers, budget, tokens: (
            4 * tokens
        ),  # a backward pass takes two or three forward
    )
)
