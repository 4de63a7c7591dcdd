"""Layers of which some must stay: without any attention layer, for example, transformers cannot generate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from swm.errors import ModelError, PlanError
from swm.plan import MergePlan, dropped_plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Needed = Sequence[frozenset[int]]
MOST_KINDS = 8  # of layers: with more, nothing is tried out


def loses(plan: MergePlan, needed: Needed) -> bool:
    """Whether a plan leaves no layer of one of these sets."""
    left = set(plan.base_layers())
    return any(not group & left for group in needed)


def needed_layers(model: PreTrainedModel, kinds: Sequence[int]) -> Needed:
    """Sets of layers of which one at least must stay, so that the smaller model can generate text; often none.

    Tried out, with each kind of layers gone and with each kind alone.

    Args:
        model: not changed. Nothing is tried out if it cannot generate itself, or has not all weights in memory.
        kinds: of each layer, as from `models.layer_facts.kinds_of`.
    """
    each = {kind: frozenset(n for n, one in enumerate(kinds) if one == kind) for kind in kinds}
    offloaded = any(weights.device.type == "meta" for weights in model.parameters())
    if not 1 < len(each) <= MOST_KINDS or offloaded or not _generates(model, ()):
        return []
    everything = frozenset(range(len(kinds)))
    needed = [layers for layers in each.values() if _generates(model, layers) is False]
    unable = [layers for layers in each.values() if _generates(model, everything - layers) is False]
    others = everything.difference(*unable)
    return [*needed, others] if unable and others and others not in needed else needed


def is_fragile(model: PreTrainedModel, kinds: Sequence[int]) -> bool:
    """Whether there are layers without which no config describes the model.

    Tried out: without the lowest, the highest, and all layers of each kind.

    Args:
        kinds: of each layer, as from `models.layer_facts.kinds_of`.
    """
    from swm.merging.apply import check_plan

    each = {kind: [n for n, one in enumerate(kinds) if one == kind] for kind in kinds}
    if len(each) < 2:
        return False
    try:
        for layers in list(each.values())[:MOST_KINDS]:
            for gone in (layers[:1], layers[-1:], layers):
                check_plan(model, dropped_plan(len(kinds), gone))
    except PlanError:
        return True
    return False


def _generates(model: PreTrainedModel, dropped: Iterable[int]) -> bool | None:
    """Whether transformers can generate without these layers; None if no config describes such a model."""
    import torch

    from swm.evaluation.generation import check_generates
    from swm.merging.apply import apply_plan
    from swm.models.decoder import find_decoder

    count = len(find_decoder(model).layers)
    try:
        smaller = apply_plan(model, dropped_plan(count, dropped))
    except PlanError:
        return None
    try:
        check_generates(smaller, torch.tensor([[0, 0]]))
    except ModelError:
        return False
    return True
