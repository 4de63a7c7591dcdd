"""What a config says about individual layers, and how to rewrite it when some are removed.

Each model family encodes such facts differently: a list with one entry per layer, a repeating pattern, layer indexes,
or a count ("the first 3 are dense"). This module knows none of them by name. It builds the model without weights from
the old config and from a changed one, and compares the layers: a change is right if every kept layer is built as
before.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

from swm.errors import ModelError, PlanError
from swm.models.decoder import find_decoder
from swm.models.locate import config_errors

Facts = dict[str, Any]
Signature = tuple[dict[str, Any], ...]
CANNOT_BE: tuple[type[Exception], ...] = (ModelError, StopIteration, *config_errors())


@dataclass(frozen=True)
class _Build:
    """All that decides how a model is built, so that what was found for one is true of every other that is equal."""

    made_by: type[PreTrainedModel]
    written: str  # the config as a file
    config: PreTrainedConfig = field(compare=False, repr=False)


def _build_of(model: PreTrainedModel) -> _Build:
    return _Build(type(model), model.config.to_json_string(use_diff=False), copy.deepcopy(model.config))


def facts_for(model: PreTrainedModel, kept: Sequence[int]) -> Facts:
    """Entries of the (text) config that describe the model made of the layers `kept`.

    Args:
        model: not changed, no weight is read; its config must match its layers.
        kept: original layer indexes in their new order, each at most once.

    Raises:
        PlanError: if the family's config cannot describe such a model, so that it could not be reloaded.
    """
    found = _facts_found(_build_of(model), tuple(kept))
    if isinstance(found, str):
        raise PlanError(found)
    return copy.deepcopy(found)


@lru_cache(maxsize=64)
def _facts_found(build: _Build, kept: tuple[int, ...]) -> Facts | str:
    """The facts, or why there are none: found once, because building models for it is what takes time."""
    before = _original_layers(build)
    count, targets = len(before), [before[layer] for layer in kept]
    entries = _entries(build.config)
    facts: Facts = {name: [value[i] for i in kept] for name, value in entries.items() if _is_list(value, count)}
    facts["num_hidden_layers"] = len(kept)
    matching = _matching_layers(build, facts, targets, kept)
    while matching < len(kept):
        attempts = _attempts(entries, facts, kept, count)
        scores = [_matching_layers(build, changed, targets, kept) for changed in attempts]
        if max(scores, default=-1) <= matching:
            return _indescribable(build, facts, targets, kept)
        matching = max(scores)
        facts = attempts[scores.index(matching)]
    return facts


def check_removable(model: PreTrainedModel) -> None:
    """Raise ModelError if no layer of such a model can be removed: if all depend on the number of layers (MiniMax).

    The last layer and the first one are tried.
    """
    count = len(find_decoder(model).layers)
    reason = ""
    for removed in (count - 1, 0):
        try:
            facts_for(model, [layer for layer in range(count) if layer != removed])
        except PlanError as error:
            reason = reason or str(error).partition("(")[2].partition(")")[0]
        else:
            return
    raise ModelError(f"No layer of {type(model).__name__} can be removed: {reason}. Choose another model.")


def kinds_of(model: PreTrainedModel) -> list[int]:
    """The kind of each layer, lowest first: the lowest layer that is built the same way."""
    return list(_kinds_found(_build_of(model)))


@lru_cache(maxsize=64)
def _kinds_found(build: _Build) -> list[int]:
    layers = _original_layers(build)
    return [next(i for i, one in enumerate(layers) if _alike(one, layer, i, n)) for n, layer in enumerate(layers)]


def fixed_kinds(model: PreTrainedModel) -> list[str]:
    """The kind of each layer, lowest first, in a family whose config ties kinds to places (Jamba); otherwise empty.

    There, a layer of a smaller model must be of the kind that the original has at its place. Tried out: one layer
    before another kind is removed, at the lowest and the highest such places; not the only one of its kind.
    """
    kinds = kinds_of(model)
    changes = [n for n, (kind, above) in enumerate(itertools.pairwise(kinds)) if kind != above]
    before_another = [n for n in changes if kinds.count(kinds[n]) > 1]
    for removed in dict.fromkeys([*before_another[:2], *before_another[-2:]]):
        try:
            facts_for(model, [layer for layer in range(len(kinds)) if layer != removed])
        except PlanError:
            return [f"kind {kind}" for kind in kinds]
    return []


def set_facts(model: PreTrainedModel, facts: Facts) -> None:
    """Write the entries from `facts_for` into the model's own config."""
    for name, value in facts.items():
        setattr(model.config.get_text_config(), name, value)


def _entries(config: PreTrainedConfig) -> Facts:
    """The family's own config entries; those that every config has say nothing about individual layers."""
    common = {*vars(PreTrainedConfig()), "num_hidden_layers", "vocab_size", "hidden_size"}
    entries = vars(config.get_text_config()).items()
    return {name: v for name, v in entries if name not in common and not name.startswith("_") and "token" not in name}


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == length


def _attempts(entries: Facts, facts: Facts, kept: Sequence[int], count: int) -> list[Facts]:
    """The facts with one entry changed, each change once: building a model for it is what takes time."""
    now, changes = {**entries, **facts}, list[tuple[str, Any]]()
    for name, value in _candidates(entries, kept, count):
        if value != now[name] and (name, value) not in changes:
            changes.append((name, value))
    return [{**facts, name: value} for name, value in changes]


def _candidates(entries: Facts, kept: Sequence[int], count: int) -> Iterator[tuple[str, Any]]:
    """Each entry's possible new values, for every way in which it could describe layers."""
    for name, value in entries.items():
        if _is_list(value, count):
            yield name, value  # has the length of the layer list by coincidence
        if isinstance(value, (list, tuple)) and value:
            yield from ((name, new) for new in _of_list(value, kept, count))
        elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= count:
            below = sum(layer < value for layer in kept)
            yield name, below  # the first N layers, or the index where something begins
            yield name, below - 1  # the index where it ends; that layer may be removed
            yield name, sum(layer <= value for layer in kept) - 1
            yield name, sum(layer >= count - value for layer in kept)  # the last N layers


def _of_list(value: Sequence[Any], kept: Sequence[int], count: int) -> Iterator[list[Any]]:
    yield [value[layer % len(value)] for layer in kept]  # a repeating pattern
    if all(isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[1], int) for item in value):
        kinds = [kind for pattern, times in value for kind in list(pattern) * times]  # patterns with counts
        if len(kinds) == count:
            yield [[[kinds[layer] for layer in kept], 1]]
    if all(isinstance(item, int) for item in value):
        yield [new for new, old in enumerate(kept) if old in value]  # layer indexes


def _matching_layers(build: _Build, facts: Facts, targets: Sequence[Signature], kept: Sequence[int]) -> int:
    """How many layers the changed config builds like their targets; -1 if it builds no model of that depth."""
    try:
        built = _layers_of(build, facts)
    except CANNOT_BE:
        return -1
    if len(built) != len(targets):
        return -1
    return sum(_alike(a, b, new, old) for new, (a, b, old) in enumerate(zip(built, targets, kept, strict=True)))


@lru_cache(maxsize=8)
def _original_layers(build: _Build) -> list[Signature]:
    """The layers of the model itself, which every plan is compared with."""
    return _layers_of(build, {})


def _layers_of(build: _Build, facts: Facts) -> list[Signature]:
    config = copy.deepcopy(build.config)
    for name, value in facts.items():
        setattr(config.get_text_config(), name, value)
    if facts:  # as it will be reloaded
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            config = type(config).from_pretrained(folder)
    with torch.device("meta"), _Uninitialised(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about attempted entries that make no sense
        built: Any = build.made_by(config)
    entries = vars(built.config.get_text_config())
    return [_signature(layer, entries) for layer in find_decoder(built).layers]


class _Uninitialised(TorchFunctionMode):
    """Leaves new weights as they are: drawing numbers on the meta device takes a third of the time and gives none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _signature(layer: nn.Module, entries: Facts) -> Signature:
    """Each module of the layer: its path, class, plain attributes and parameter shapes.

    Lists that a module copies from the config are about the whole model, not about this layer (GPT-Neo).
    """

    def is_own(name: str, value: Any) -> bool:
        whole = isinstance(value, (list, tuple)) and name in entries and value == entries[name]
        return name[0] != "_" and name != "training" and isinstance(value, plain) and not whole

    plain = (int, float, bool, str, type(None), list, tuple)
    return tuple(
        {
            "module": (path, type(module).__name__),
            **{f"shape {name}": tuple(p.shape) for name, p in module.named_parameters(recurse=False)},
            **{name: value for name, value in vars(module).items() if is_own(name, value)},
        }
        for path, module in layer.named_modules()
    )


def _alike(built: Signature, target: Signature, new: int, old: int) -> bool:
    """Whether two layers are built the same way, except that each may store its own layer index."""
    if len(built) != len(target):
        return False
    return all(
        a.keys() == b.keys() and all(a[name] == b[name] or (a[name], b[name]) == (new, old) for name in a)
        for a, b in zip(built, target, strict=True)
    )


def _indescribable(build: _Build, facts: Facts, targets: Sequence[Signature], kept: Sequence[int]) -> str:
    try:
        built = _layers_of(build, facts)
        wrong = next(n for n, layer in enumerate(built) if not _alike(layer, targets[n], n, kept[n]))
        reason = f"layer {wrong} of the smaller model, originally layer {kept[wrong]}, would be built as another kind"
    except CANNOT_BE:
        reason = "no model can be built from it"
    return (
        f"Cannot save this plan: the config of {build.made_by.__name__} cannot describe the layers that are left "
        f"({reason}). Choose windows that preserve the order in which its layer types alternate."
    )
