"""Layers of which some must stay: without any attention layer, for example, transformers cannot generate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from swm.errors import ModelError, PlanError
from swm.plan import MergePlan, Needed, dropped_plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from swm.models.trial import Trial

MOST_KINDS = 8  # of layers: with more, nothing is tried out


def needed_layers(model: PreTrainedModel, trial: Trial | None = None) -> Needed:
    """Sets of layers of which one at least must stay, so that the smaller model can be saved and write; often none.

    Tried out on `models.trial`, with each kind of layers gone and with each kind alone.

    Args:
        model: not changed, no weight is read.
        trial: of the model, if one has been made.
    """
    from swm.evaluation.generation import OF_MODELS
    from swm.models.layer_facts import fixed_kinds, kinds_of
    from swm.models.trial import trial_model

    kinds = kinds_of(model)
    if not 1 < len({*kinds}) <= MOST_KINDS:
        return []
    try:
        made, some = trial or trial_model(model)
    except (ModelError, *OF_MODELS):  # no trial can be made of it
        return []
    each = _places([kinds[layer] for layer in some])
    everything = frozenset(range(len(some)))
    dropped = {frozenset[int](), *each.values(), *(everything - places for places in each.values())}
    writes = {places: _generates(made, places) for places in dropped}
    if not writes[frozenset()]:
        return []
    free = not fixed_kinds(model)  # where kinds are tied to places, a config fails for these

    def must_stay(kind: int) -> bool:
        alone = writes[each[kind]]
        return alone is False or (alone is None and free and not _can_lose(model, kinds, kind))

    needed = [{kind} for kind in each if must_stay(kind)]
    others = {kind for kind, places in each.items() if writes[everything - places] is not False}
    if len(others) < len(each) and others and others not in needed:
        needed.append(others)
    return [frozenset(layer for layer, kind in enumerate(kinds) if kind in group) for group in needed]


def _places(kinds: Sequence[int]) -> dict[int, frozenset[int]]:
    """The layers of each kind."""
    return {kind: frozenset(layer for layer, one in enumerate(kinds) if one == kind) for kind in kinds}


def _can_lose(model: PreTrainedModel, kinds: Sequence[int], kind: int) -> bool:
    return describable(model, dropped_plan(len(kinds), _places(kinds)[kind]))


def describable(model: PreTrainedModel, plan: MergePlan) -> bool:
    """Whether a config can describe the plan's model."""
    from swm.merging.apply import check_plan

    try:
        check_plan(model, plan)
    except PlanError:
        return False
    return True


def is_fragile(model: PreTrainedModel, kinds: Sequence[int]) -> bool:
    """Whether there are layers without which no config describes the model.

    Tried out: without the lowest, the highest, and all layers of each kind.

    Args:
        kinds: of each layer, as from `models.layer_facts.kinds_of`.
    """
    each = [sorted(layers) for layers in _places(kinds).values()]
    gone = [some for layers in each[:MOST_KINDS] for some in (layers[:1], layers[-1:], layers)]
    return len(each) > 1 and not all(describable(model, dropped_plan(len(kinds), some)) for some in gone)


def _generates(model: PreTrainedModel, dropped: Iterable[int]) -> bool | None:
    """Whether transformers can generate without these layers; None if no config describes such a model."""
    import torch

    from swm.evaluation.generation import generation_error
    from swm.merging.apply import apply_plan
    from swm.models.decoder import find_decoder

    count = len(find_decoder(model).layers)
    try:
        smaller = apply_plan(model, dropped_plan(count, dropped))
    except PlanError:
        return None
    return not generation_error(smaller, torch.tensor([[0, 0]]))
