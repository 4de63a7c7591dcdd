"""The Unreasonable Ineffectiveness of the Deeper Layers, arXiv:2403.17887: drops one block of consecutive layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swm.errors import PlanError
from swm.plan import MergePlan, Needed, dropped_plan
from swm.planners.request import PlanRequest
from swm.registry import PLANNERS, Planner

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def find(request: PlanRequest) -> MergePlan:
    """The plan without the block whose input and output have the smallest angular distance."""
    block = most_redundant_block(request.model, request.tokens, request.drop, request.kinds, request.needed)
    return dropped_plan(request.layer_count, block)


def most_redundant_block(
    model: PreTrainedModel, tokens: Tensor, size: int, kinds: Sequence[str] = (), needed: Needed = ()
) -> range:
    """The `size` consecutive layers whose input and output differ least in angle at the last token of each text.

    Args:
        kinds: of each layer, if those left must be of the kinds that the places had.
        needed: sets of layers of which one at least must stay.

    Raises:
        PlanError: if no block keeps the kinds.

    Source: section 3.2, equations 2 and 3. Differs: several short texts instead of one long set; the paper's healing
    step is left to the recovery.
    """
    import torch
    from torch.nn.functional import cosine_similarity

    from swm.models.layer_outputs import layer_outputs

    if not size:
        return range(0)
    angles = []
    for text in tokens.split(1):
        first, outputs = layer_outputs(model, text)
        states = torch.cat([first[None], outputs])[:, 0, -1].double()
        angles.append(torch.arccos(cosine_similarity(states[:-size], states[size:], dim=-1).clamp(-1, 1)) / math.pi)
    mean = torch.stack(angles).mean(0).tolist()
    count = len(mean) + size - 1
    plans = {start: _without(count, start, size) for start in range(len(mean))}
    starts = [start for start, plan in plans.items() if not plan.out_of_place(kinds) and not plan.lost(needed)]
    if not starts:
        raise PlanError(
            f"No block of {size} layers can go so that the layers left are of the kinds that the model needs. Choose "
            "another number of layers or another planner."
        )
    start = min(starts, key=mean.__getitem__)
    return range(start, start + size)


def _without(count: int, start: int, size: int) -> MergePlan:
    return dropped_plan(count, range(start, start + size))


PLANNERS.register(
    Planner(
        "angular",
        "Deeper layers (angular)",
        "drops the block of consecutive layers whose input and output differ least in angle at the last token",
        "The Unreasonable Ineffectiveness of the Deeper Layers, arXiv:2403.17887",
        find,
        tokens_read=lambda layer_count, layers, budget, tokens: tokens,
        halves=True,
    )
)
