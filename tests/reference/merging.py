"""Every merge rule, applied to a copy of the whole model that plain transformers can run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from swm.plan import MergePlan, Window

LAST_AS_BASE = frozenset({"keep_last"})


def merged_copy(model: PreTrainedModel, windows: Sequence[Window], rule: str) -> PreTrainedModel:
    """A model whose windows are one layer each; `model` is not changed.

    Args:
        model: causal LM, in eval mode.
        windows: in any order, none overlapping.
        rule: rdsc, replace, mean, keep_first or keep_last.

    Source: FACTS section 1, table of merge rules; section 4 for what else must change with the number of layers.
    """
    if rule not in MERGED_VALUE:
        raise ValueError(f"No reference for rule '{rule}': use one of {', '.join(MERGED_VALUE)}.")
    kept = MergePlan(len(find_layers(model)), tuple(sorted(windows)), rule).kept_layers()
    result = copy.deepcopy(model)
    for window in kept:
        if len(window) > 1:
            _merge_window(find_layers(model), find_layers(result), window, rule)
    keep_layers(result, [base_layer(window, rule) for window in kept])
    return result


def base_layer(window: Window, rule: str) -> int:
    """The layer that gives norms, attention type and all else that is not a linear map."""
    return window.last if rule in LAST_AS_BASE else window.first


def without_layers(model: PreTrainedModel, dropped: set[int]) -> PreTrainedModel:
    """A copy of the model that lacks the layers `dropped`."""
    result = copy.deepcopy(model)
    keep_layers(result, [layer for layer in range(len(find_layers(model))) if layer not in dropped])
    return result


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers: the outermost ModuleList as long as the config says."""
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no ModuleList of {count} layers.")


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Remove all other layers from the model in place, renumber the rest and adapt the config."""
    layers = find_layers(model)
    survivors = [layers[index] for index in kept]
    select_in_config(model.config, kept)
    del layers[:]
    layers.extend(survivors)
    for position, layer in enumerate(survivors):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, "layer_idx", position)  # noqa: B010 - mypy takes module.layer_idx for a tensor


def select_in_config(config: PretrainedConfig, kept: Sequence[int]) -> None:
    """Shorten every list that has one entry per layer (layer_types, no_rope_layers, ...), then the layer count."""
    count = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count:
            setattr(config, name, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)


def linear_map_parameters(layer: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and value of the weights and biases of a layer's linear maps.

    A module outside the norms that owns a parameter of two or more dimensions is a linear map (Linear, Conv1D, the
    experts and the router of a mixture of experts), and all that it owns directly belongs to the map.
    """
    for module_name, module in layer.named_modules():
        owned = list(module.named_parameters(prefix=module_name, recurse=False))
        if not is_norm(module) and any(parameter.ndim >= 2 for _, parameter in owned):
            yield from owned


def is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


@torch.no_grad()
def _merge_window(sources: nn.ModuleList, targets: nn.ModuleList, window: Window, rule: str) -> None:
    """Write the merged values into the window's base layer of the copy."""
    originals = [dict(linear_map_parameters(sources[layer])) for layer in range(window.first, window.last + 1)]
    for name, target in linear_map_parameters(targets[base_layer(window, rule)]):
        stack = [parameters[name] for parameters in originals]
        if any(value.shape != target.shape for value in stack):
            raise ValueError(f"{name} differs in shape between the layers of window {window}.")
        target.copy_(MERGED_VALUE[rule]([value.double() for value in stack]))


def rdsc(weights: list[Tensor]) -> Tensor:
    """W_l + sum over k of (W_k - W_l): the formula printed in the paper (arXiv 2502.19159) and in LaCo."""
    merged = weights[0].clone()
    for later in weights[1:]:
        merged += later - weights[0]
    return merged


def mean(weights: list[Tensor]) -> Tensor:
    return torch.stack(weights).sum(0) / len(weights)


def first(weights: list[Tensor]) -> Tensor:
    return weights[0]


def last(weights: list[Tensor]) -> Tensor:
    return weights[-1]


# What a linear map of the merged layer is, given those of the window from the lowest layer to the highest.
MERGED_VALUE: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "rdsc": rdsc,
    "replace": last,
    "mean": mean,
    "keep_first": first,
    "keep_last": last,
}
