"""SLEB, arXiv:2402.09025: drops layers one by one, each time the one whose removal raises the loss least."""

from __future__ import annotations

from swm.plan import MergePlan, dropped_plan
from swm.planners.drops import beam_drops, most_tried
from swm.planners.request import PlanRequest
from swm.registry import PLANNERS, Planner


def find(request: PlanRequest) -> MergePlan:
    """The plan of SLEB's greedy search (section 3.3, algorithm 1).

    As in its released code, the first and the last layer stay.
    """
    count = request.layer_count
    best = beam_drops(
        range(1, count - 1), request.drop, request.loss("dropped"), on_try=request.tried, kinds=request.kinds
    )[0]
    return dropped_plan(count, best)


def tokens_read(layer_count: int, layers: int, budget: int, tokens: int) -> float:
    """Each set of layers tried reads the text once."""
    return tokens * most_tried(layer_count - 2, layer_count - layers)


PLANNERS.register(
    Planner(
        "sleb",
        "SLEB",
        "drops layers one by one, each time the one whose removal raises perplexity least",
        "SLEB, arXiv:2402.09025",
        find,
        tokens_read=tokens_read,
        keeps=True,
    )
)
