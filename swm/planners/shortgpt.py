"""ShortGPT, arXiv:2403.03853: drops, all at once, the layers that change the hidden state least."""

from __future__ import annotations

from swm.plan import MergePlan, dropped_plan
from swm.planners.drops import lowest_layers
from swm.planners.request import PlanRequest
from swm.registry import PLANNERS, Planner


def find(request: PlanRequest) -> MergePlan:
    """The plan without the layers of lowest block influence, 1 - mean cosine of input and output (section 3.2)."""
    from swm.similarity.layers import block_influence

    influence = block_influence(request.model, request.tokens).tolist()
    return dropped_plan(request.layer_count, lowest_layers(influence, request.drop, request.kinds, request.needed))


PLANNERS.register(
    Planner(
        "shortgpt",
        "ShortGPT",
        "drops the layers that change the hidden state least, all at once (block influence)",
        "ShortGPT, arXiv:2403.03853",
        find,
        tokens_read=lambda layer_count, layers, budget, tokens: tokens,
        halves=True,
    )
)
