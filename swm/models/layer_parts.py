"""The two parts of a layer, by the names of their weights: what mixes tokens, and the MLP."""

from __future__ import annotations

from torch import nn

from swm.models.offload import weights_of

MLPS = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "fc1", "fc2")  # what families call the part after attention
PARTS = ("attention", "mlp")


def part_weights(layer: nn.Module, part: str) -> list[str]:
    """Names of a part's parameters, relative to the layer, without norms; empty if no part has a usual name.

    With all of them at 0 the part adds nothing. So a norm on its result, or an MLP beside the attention, needs no
    special case.
    """
    mlps = tuple(f"{name}." for name, _ in layer.named_children() if name in MLPS)
    if not mlps:
        return []
    names = list(weights_of(layer))
    if part == "mlp":
        return [name for name in names if name.startswith(mlps)]
    norms = tuple(f"{name}." for name, child in layer.named_children() if "norm" in type(child).__name__.lower())
    return [name for name in names if not name.startswith((*mlps, *norms))]
