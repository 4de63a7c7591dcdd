"""Layers dropped by chance: what any method has to beat."""

from __future__ import annotations

import random

from swm.plan import MergePlan
from swm.planners.drops import dropped_plan
from swm.planners.request import PlanRequest
from swm.registry import PLANNERS, Planner


def find(request: PlanRequest) -> MergePlan:
    """The plan without layers drawn by the seed; the first layer stays."""
    drawn = random.Random(request.seed).sample(range(1, request.layer_count), request.drop)
    return dropped_plan(request.layer_count, drawn)


PLANNERS.register(Planner("random", "Random", "layers dropped by chance: what any method has to beat", "chance", find))
