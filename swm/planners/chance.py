"""Drops random layers: the baseline that any method should beat."""

from __future__ import annotations

import math
import random

from swm.plan import MergePlan, dropped_plan
from swm.planners.drops import lowest_layers
from swm.planners.request import PlanRequest
from swm.registry import PLANNERS, Planner


def find(request: PlanRequest) -> MergePlan:
    """The plan without randomly drawn layers, the same for the same seed; the first layer stays."""
    numbers, layers = random.Random(request.seed), range(1, request.layer_count)
    if not request.kinds and not request.needed:
        return dropped_plan(request.layer_count, numbers.sample(layers, request.drop))
    values = [math.inf, *(numbers.random() for _ in layers)]
    return dropped_plan(request.layer_count, lowest_layers(values, request.drop, request.kinds, request.needed))


PLANNERS.register(
    Planner(
        "random",
        "Random",
        "drops random layers: the baseline that any method should beat",
        "chance",
        find,
        tokens_read=lambda layer_count, layers, budget, tokens: 0,
    )
)
