"""Shortened LLaMA (PPL), arXiv:2402.02834: drops, all at once, the layers whose removal raises perplexity least."""

from __future__ import annotations

from swm.plan import MergePlan, dropped_plan
from swm.planners.drops import in_a_round, lowest_layers
from swm.planners.request import PlanRequest
from swm.registry import PLANNERS, Planner


def find(request: PlanRequest) -> MergePlan:
    """The plan without the layers whose individual removal raises perplexity least (section 3.1, PPL)."""
    count, loss = request.layer_count, request.loss("dropped")
    sets, losses, at_once = [frozenset({layer}) for layer in range(count)], [], in_a_round()
    for done in range(0, count, at_once):
        losses += loss.of_all(sets[done : done + at_once])
        request.tried(len(losses), count)
    return dropped_plan(count, lowest_layers(losses, request.drop, request.kinds, request.needed))


PLANNERS.register(
    Planner(
        "perplexity",
        "Shortened LLaMA PPL (perplexity)",
        "drops the layers whose removal raises perplexity least, all at once",
        "Shortened LLaMA by perplexity, arXiv:2402.02834",
        find,
        tokens_read=lambda layer_count, layers, budget, tokens: layer_count * tokens,
        keeps=True,
    )
)
