"""Applies a plan to a model in memory.

A merge rule combines the *projections* of the layers: the parameters of every module that owns a matrix (linear
layers, fused or not, GPT-2's Conv1D, stacked experts), with their biases. Norms and everything else come from the base
layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swm.errors import ModelError, PlanError
from swm.merging.merged_layer import MergedLayer
from swm.merging.scale import folded
from swm.models.decoder import find_decoder, renumber_layers
from swm.models.layer_facts import facts_for, set_facts
from swm.models.offload import weights_of
from swm.plan import MergePlan, Window, base_layer
from swm.registry import MERGE_RULES

BLOCK_NUMBERS = 2**20  # elements of a matrix that are summed at a time, in float32


def merge_window(layers: Sequence[nn.Module], window: Window, rule: str) -> MergedLayer:
    """The merged layer of a window, computed from the weights alone.

    Memory: the merged layer, and a few rows of it in float32; none if the rule keeps one of the window's layers.
    """
    if MERGE_RULES.check(rule).needs_text:
        raise ValueError(f"Rule {rule} needs text: see swm.merging.fit.")
    check_window(layers, window, rule)
    base = base_layer(window, rule)
    if MERGE_RULES[rule].combine is None:
        return MergedLayer(base)
    sources = [weights_of(layers[index]) for index in range(window.first, window.last + 1)]
    names = projection_names(layers[window.first])
    return MergedLayer(base, {name: merged_tensor([weights[name] for weights in sources], rule) for name in names})


@torch.no_grad()
def merged_tensor(tensors: Sequence[Tensor], rule: str) -> Tensor:
    """One parameter of a merged layer, summed in float32.

    Args:
        tensors: the parameter in each of the window's layers, lowest first; two or more, all of the same shape.
        rule: a merge rule that combines layers.
    """
    combine = MERGE_RULES.check(rule).combine
    if combine is None:
        reason = "needs text: see swm.merging.fit" if MERGE_RULES[rule].needs_text else "keeps one layer unchanged"
        raise ValueError(f"Rule {rule} {reason}.")
    first = tensors[0].detach()
    merged: Tensor | None = None
    picked: int | None = None  # the layer whose parameter every block so far is, unchanged: it needs no copy
    height = max(1, BLOCK_NUMBERS * len(first) // max(1, first.numel()))
    for top in range(0, max(1, len(first)), height):
        rows = slice(top, top + height)
        blocks = [tensor.detach()[rows].to(first.device, torch.float32) for tensor in tensors]
        block = combine(blocks)
        chosen = next((index for index, own in enumerate(blocks) if own is block), None)
        if merged is None and chosen is not None and picked in (None, chosen):
            picked = chosen
            continue
        if merged is None:
            merged = torch.empty_like(first)
            if picked is not None:
                merged[:top] = tensors[picked].detach()[:top]
        merged[rows] = block
    if merged is None:
        assert picked is not None
        return tensors[picked].detach().to(first.device, first.dtype)
    return merged


def projection_names(layer: nn.Module) -> list[str]:
    """Names of the layer's parameters that rules combine: all of modules that own a matrix, offloaded or not."""
    names: list[str] = []
    for path, module in layer.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if any(parameter.ndim >= 2 for parameter in own.values()):
            names += [f"{path}.{name}" if path else name for name in own]
    return names


def check_window(layers: Sequence[nn.Module], window: Window, rule: str) -> None:
    """Raise PlanError if the rule combines layers but the window's differ in shape, ModelError if they are quantised.

    Rules that keep one layer whole accept any window.
    """
    if MERGE_RULES[rule].combine is None:
        return
    first = _shapes(layers[window.first])
    for index in range(window.first + 1, window.last + 1):
        if _shapes(layers[index]) != first:
            raise PlanError(
                f"Cannot merge window {window}: layers {window.first} and {index} differ in shape or type "
                f"({type(layers[window.first]).__name__}, {type(layers[index]).__name__}). "
                "Choose windows of equal layers, or a rule that keeps one layer whole: keep_first or keep_last."
            )
    for name, parameter in layers[window.first].named_parameters():
        if not parameter.is_floating_point():
            raise ModelError(
                f"Cannot merge layers: the weights are quantised ({name} is {parameter.dtype}). "
                "Load the model without quantisation."
            )


def can_merge(layers: Sequence[nn.Module], window: Window, rule: str) -> bool:
    """Whether the rule can merge the window's layers into one."""
    try:
        check_window(layers, window, rule)
    except PlanError:
        return False
    return True


def _shapes(layer: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in layer.named_parameters()}


@torch.no_grad()
def apply_plan(
    model: PreTrainedModel, plan: MergePlan, make: Callable[[Window], MergedLayer] | None = None
) -> PreTrainedModel:
    """A new model with the plan's windows merged.

    Args:
        model: not changed; the new model shares every tensor that the plan leaves unchanged.
        make: makes the merged layer of a window; by default the plan's rule, from the weights alone.

    Returns:
        A model of the same class with `plan.layers_left` layers; its config and layer indexes are updated.

    Raises:
        PlanError: if the plan was made for another layer count, a window combines layers of different shapes, or the
            config cannot describe the smaller model.
        ValueError: for rules that need text: see `swm.merging.fit.apply_fitted_plan`.
        NoScaleError: if a layer that was made has a factor that cannot be folded into the layers above.

    Memory: one layer for each window; for rule `scale`, the last maps of all layers above.
    """
    layers = find_decoder(model).layers
    facts = check_plan(model, plan)
    make = make or (lambda window: merge_window(layers, window, plan.rule))
    merged = folded(model, plan, {window: make(window) for window in plan.windows})
    kept = plan.base_layers()
    tensors = [*model.parameters(), *model.buffers()]
    small = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    decoder = find_decoder(small)
    setattr(decoder.parent, decoder.attribute, nn.ModuleList([decoder.layers[index] for index in kept]))
    set_facts(small, facts)
    renumber_layers(small)
    for layer, window in zip(find_decoder(small).layers, plan.kept_layers(), strict=True):
        if window in merged:
            _set_parameters(layer, merged[window], layers[merged[window].base])
    return small


def check_plan(model: PreTrainedModel, plan: MergePlan) -> dict[str, Any]:
    """The config entries that change in the merged model; reads no weight.

    Raises:
        PlanError: if the plan is for another layer count, combines layers of different shapes, or gives a model that
            its config cannot describe, so that it could not be saved.
    """
    layers = find_decoder(model).layers
    if plan.layer_count != len(layers):
        raise PlanError(
            f"The plan is for {plan.layer_count} layers, but the model has {len(layers)}. Make a plan for this model."
        )
    for window in plan.windows:
        check_window(layers, window, plan.rule)
    return facts_for(model, list(plan.base_layers())) if plan.windows else {}


def _set_parameters(layer: nn.Module, merged: MergedLayer, base: nn.Module) -> None:
    own = weights_of(base) if merged.divided else {}
    for name in merged.differs():
        tensor = merged.parameter(name, partial(own.__getitem__, name))
        path, _, attribute = name.rpartition(".")
        setattr(layer.get_submodule(path), attribute, nn.Parameter(tensor, requires_grad=False))
