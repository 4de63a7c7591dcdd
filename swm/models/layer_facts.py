"""What a config says of single layers, and what it has to say once some of them are gone.

Families keep such facts in their own ways: a list with an entry for each layer, a pattern that repeats, indexes of
layers, or a count ("the first 3 are dense"). None of these is known by name here. The model is built twice without
weights, from the old config and from a changed one, and the layers are compared: a change is right when each layer
that stays is built as it was.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from swm.errors import ModelError, PlanError
from swm.models.decoder import find_decoder
from swm.models.locate import config_errors

Facts = dict[str, Any]
Signature = tuple[dict[str, Any], ...]
CANNOT_BE: tuple[type[Exception], ...] = (ModelError, StopIteration, *config_errors())


def facts_for(model: PreTrainedModel, kept: Sequence[int]) -> Facts:
    """Entries of the (text) config that describe the model of the layers that were number `kept` before.

    Args:
        model: not changed, no weight is read; its config describes it as it is.
        kept: in order, each at most once.

    Raises:
        PlanError: if the family's config has no way to describe such a model, so that it could not be loaded again.
    """
    before = _layers_of(model, {})
    count, wanted = len(before), [before[layer] for layer in kept]
    entries = _entries(model)
    facts: Facts = {name: [value[i] for i in kept] for name, value in entries.items() if _is_list(value, count)}
    facts["num_hidden_layers"] = len(kept)
    right = _matching(model, facts, wanted, kept)
    while right < len(kept):
        tried = [{**facts, name: value} for name, value in _candidates(entries, kept, count)]
        scores = [_matching(model, changed, wanted, kept) for changed in tried]
        if max(scores, default=-1) <= right:
            raise _cannot_be_said(model, facts, wanted, kept)
        right = max(scores)
        facts = tried[scores.index(right)]
    return facts


def set_facts(model: PreTrainedModel, facts: Facts) -> None:
    """Put them into the model's own config."""
    for name, value in facts.items():
        setattr(model.config.get_text_config(), name, value)


def _entries(model: PreTrainedModel) -> Facts:
    """What is particular to the family: entries that every config has say nothing of layers."""
    common = {*vars(PreTrainedConfig()), "num_hidden_layers", "vocab_size", "hidden_size"}
    found = vars(model.config.get_text_config()).items()
    return {name: v for name, v in found if name not in common and not name.startswith("_") and "token" not in name}


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == length


def _candidates(entries: Facts, kept: Sequence[int], count: int) -> Iterator[tuple[str, Any]]:
    """Each entry as it would read if it were a fact about layers, of any kind."""
    for name, value in entries.items():
        if _is_list(value, count):
            yield name, value  # as long as the layers by chance
        if isinstance(value, (list, tuple)) and value:
            yield name, [value[layer % len(value)] for layer in kept]  # a pattern that repeats
            if all(isinstance(one, (list, tuple)) and len(one) == 2 and isinstance(one[1], int) for one in value):
                each = [kind for kinds, times in value for kind in list(kinds) * times]  # patterns with how often
                if len(each) == count:
                    yield name, [[[each[layer] for layer in kept], 1]]
            if all(isinstance(one, int) for one in value):
                yield name, [new for new, old in enumerate(kept) if old in value]  # indexes
        elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= count:
            below = sum(layer < value for layer in kept)
            yield name, below  # the first so many, or the index where something begins
            yield name, below - 1  # the index where it ends, which may be gone
            yield name, sum(layer <= value for layer in kept) - 1
            yield name, sum(layer >= count - value for layer in kept)  # the last so many


def _matching(model: PreTrainedModel, facts: Facts, wanted: Sequence[Signature], kept: Sequence[int]) -> int:
    """How many layers the config with these entries builds as wanted; -1 if it builds no such model."""
    try:
        built = _layers_of(model, facts)
    except CANNOT_BE:
        return -1
    if len(built) != len(wanted):
        return -1
    return sum(_alike(a, b, new, old) for new, (a, b, old) in enumerate(zip(built, wanted, kept, strict=True)))


def _layers_of(model: PreTrainedModel, facts: Facts) -> list[Signature]:
    config = copy.deepcopy(model.config)
    for name, value in facts.items():
        setattr(config.get_text_config(), name, value)
    if facts:  # as it will be read again
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            config = type(config).from_pretrained(folder)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of entries that are tried and make no sense
        built: Any = type(model)(config)
    return [_signature(layer) for layer in find_decoder(built).layers]


def _signature(layer: nn.Module) -> Signature:
    """Each module of the layer: its place, class, plain attributes and the shapes of its parameters."""
    plain = (int, float, bool, str, type(None), list, tuple)
    return tuple(
        {
            "module": (path, type(module).__name__),
            **{f"shape {name}": tuple(p.shape) for name, p in module.named_parameters(recurse=False)},
            **{n: v for n, v in vars(module).items() if isinstance(v, plain) and n[0] != "_" and n != "training"},
        }
        for path, module in layer.named_modules()
    )


def _alike(built: Signature, wanted: Signature, new: int, old: int) -> bool:
    """Whether two layers are built alike; where one knows its own number, the other may know its own."""
    if len(built) != len(wanted):
        return False
    return all(
        a.keys() == b.keys() and all(a[name] == b[name] or (a[name], b[name]) == (new, old) for name in a)
        for a, b in zip(built, wanted, strict=True)
    )


def _cannot_be_said(
    model: PreTrainedModel, facts: Facts, wanted: Sequence[Signature], kept: Sequence[int]
) -> PlanError:
    try:
        built = _layers_of(model, facts)
        wrong = next(n for n, one in enumerate(built) if not _alike(one, wanted[n], n, kept[n]))
        where = f"layer {wrong} of the smaller model, which was layer {kept[wrong]}, would be built as another kind"
    except CANNOT_BE:
        where = "no model can be built from it"
    return PlanError(
        f"This plan cannot be saved: the config of {type(model).__name__} has no way to say which layers are left "
        f"({where}). Choose windows that keep the order in which its kinds of layers alternate."
    )
