"""Drops random layers: the baseline that any method should beat."""

from __future__ import annotations

import random

from swm.plan import MergePlan
from swm.planners.drops import dropped_plan
from swm.planners.request import PlanRequest
from swm.registry import PLANNERS, Planner


def find(request: PlanRequest) -> MergePlan:
    """The plan without randomly drawn layers, the same for the same seed; the first layer stays."""
    drawn = random.Random(request.seed).sample(range(1, request.layer_count), request.drop)
    return dropped_plan(request.layer_count, drawn)


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
