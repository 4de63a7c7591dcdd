"""Merge rules, and applying a plan to a model.

A rule works on a layer's *projections*: the parameters of every module that owns a matrix (linear maps, fused or not,
GPT-2's Conv1D, stacked experts), with their biases. Norms and everything else come from the base layer.

Source of the rules: Sliding-Window Merging, arXiv:2502.19159 (`rdsc` as printed, "Average" as `mean`, "Delete" as
`keep_first`); `replace` is what the released code computes, `keep_last` what other depth pruners do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swm.errors import ModelError, PlanError
from swm.models import find_decoder, renumber_layers
from swm.plan import WEIGHT_RULES, MergePlan, Window, check_rule

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class MergedLayer:
    """One layer made from a window: the layer it is based on, and the parameters that differ from it."""

    base: int
    parameters: Parameters = field(default_factory=dict)


def base_layer(window: Window, rule: str) -> int:
    """The layer whose norms, kind of attention and other traits the merged layer has."""
    return window.last if rule == "keep_last" else window.first


class GrowingMerge:
    """The merged layer of a window that grows downward; each step reads one more layer.

    Keeps one float32 copy of a layer's projections (`rdsc`, `mean`) or nothing (the other rules), never a model.
    """

    def __init__(self, layers: Sequence[nn.Module], last: int, rule: str) -> None:
        check_rule(rule)
        if rule not in WEIGHT_RULES:
            raise ValueError(f"Rule {rule} needs text: see swm.fit.")
        self._layers, self._rule = layers, rule
        self.window = Window(last, last)
        self._merged = projections(layers[last])
        self._owned = False  # as long as nothing was added, these are the layer's own tensors

    def grow(self) -> MergedLayer:
        """Take in the next layer below and give the merged layer of the larger window; it may share memory with this
        object, and is right until the next step."""
        self.window = Window(self.window.first - 1, self.window.last)
        check_same_shapes(self._layers, self.window)
        base = base_layer(self.window, self._rule)
        if self._rule in ("keep_first", "keep_last"):
            return MergedLayer(base)
        first = projections(self._layers[self.window.first])
        if self._rule != "replace":
            self._add(first, projections(self._layers[self.window.first + 1]))
        return MergedLayer(base, {name: tensor.to(first[name].dtype) for name, tensor in self._merged.items()})

    def _add(self, first: Parameters, above: Parameters) -> None:
        size = len(self.window)
        if self._rule == "rdsc" and size == 2:
            return  # W_l + (W_k - W_l) = W_k
        if not self._owned:
            self._merged, self._owned = {n: w.to(torch.float32, copy=True) for n, w in self._merged.items()}, True
        for name, merged in self._merged.items():
            if self._rule == "rdsc":
                # W_l + sum (W_k - W_l) over the layers above: one layer more below changes what is taken off.
                merged.add_(above[name], alpha=size - 2).sub_(first[name], alpha=size - 2)
            else:
                merged.add_((first[name] - merged) / size)


def merge_window(layers: Sequence[nn.Module], window: Window, rule: str) -> MergedLayer:
    """The merged layer of a window; same arithmetic, in the same order, as while searching."""
    growing = GrowingMerge(layers, window.last, rule)
    for _ in range(len(window) - 1):
        merged = growing.grow()
    return merged


def projections(layer: nn.Module) -> Parameters:
    """The layer's parameters that rules combine, by name: all those of modules that own a matrix."""
    found = {}
    for path, module in layer.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if any(parameter.ndim >= 2 for parameter in own.values()):
            found.update({f"{path}.{name}" if path else name: p.detach() for name, p in own.items()})
    return found


def check_same_shapes(layers: Sequence[nn.Module], window: Window) -> None:
    """Raise PlanError if the window's layers cannot be combined, ModelError if their weights are quantised."""
    first = _shapes(layers[window.first])
    for index in range(window.first + 1, window.last + 1):
        if _shapes(layers[index]) != first:
            raise PlanError(
                f"Window {window} crosses a border: layers {window.first} and {index} differ in shape or kind "
                f"({type(layers[window.first]).__name__}, {type(layers[index]).__name__}). "
                "Choose windows on one side of it."
            )
    for name, parameter in layers[window.first].named_parameters():
        if not parameter.is_floating_point():
            raise ModelError(
                f"The weights are quantised ({name} is {parameter.dtype}), so layers cannot be added up. "
                "Load the model without quantisation."
            )


def can_merge(layers: Sequence[nn.Module], window: Window) -> bool:
    """Whether the window's layers are alike in shape."""
    try:
        check_same_shapes(layers, window)
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
        model: not changed; every tensor that the plan leaves alone is shared with it, not copied.
        make: makes the merged layer of a window; by default the plan's rule does, from the weights alone.

    Returns:
        A model of the same class with `plan.layers_left` layers, its config and layer numbers adapted.

    Raises:
        PlanError: if the plan was made for another layer count, or a window crosses layers of different shape.
        ValueError: for rule `fit`, which needs text: see `swm.fit.apply_fitted_plan`.

    Memory: one layer for each window.
    """
    layers = find_decoder(model).layers
    if plan.layer_count != len(layers):
        raise PlanError(
            f"The plan is for {plan.layer_count} layers, the model has {len(layers)}. Make the plan for this model."
        )
    make = make or (lambda window: merge_window(layers, window, plan.rule))
    merged = {window: make(window) for window in plan.windows}
    kept = [merged[window].base if window in merged else window.first for window in plan.kept_layers()]
    tensors = [*model.parameters(), *model.buffers()]
    small = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    decoder = find_decoder(small)
    setattr(decoder.parent, decoder.attribute, nn.ModuleList([decoder.layers[index] for index in kept]))
    renumber_layers(small, kept)
    for layer, window in zip(find_decoder(small).layers, plan.kept_layers(), strict=True):
        if window in merged:
            _set_parameters(layer, merged[window].parameters)
    return small


def _set_parameters(layer: nn.Module, parameters: Parameters) -> None:
    for name, tensor in parameters.items():
        path, _, attribute = name.rpartition(".")
        setattr(layer.get_submodule(path), attribute, nn.Parameter(tensor, requires_grad=False))
