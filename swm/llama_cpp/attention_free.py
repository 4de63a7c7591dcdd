"""Layers without attention: llama.cpp's architecture `deci` has them, in the form of a Llama."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from swm.errors import ModelError, SettingsError
from swm.llama_cpp.families import Family
from swm.llama_cpp.tensors import Target

DECI = "deci"
ATTENTION = re.compile(r"^blk\.(\d+)\.attn_")


def check_without_attention(config: Any, family: Family, layers: Collection[int]) -> None:
    """Refuse a family that has no such form, and layers that cannot lose their attention.

    Raises:
        ModelError: for a family other than Llama and Mistral. SettingsError: for the first layer, from which llama.cpp
            reads the size of a head, or one that does not exist.
    """
    if family.arch != "llama" or getattr(config, "num_local_experts", None):
        raise ModelError(
            f"llama.cpp cannot leave out attention in models of type {config.model_type}, only in those of type llama "
            "or mistral."
        )
    if unusable := [layer for layer in layers if not 1 <= layer < config.num_hidden_layers]:
        raise SettingsError(
            f"Layer {unusable[0]} cannot lose its attention. Choose among 1 to {config.num_hidden_layers - 1}."
        )


def kept_targets(targets: list[Target], layers: Collection[int]) -> list[Target]:
    """The tensors without those of the attention of some layers."""
    return [target for target in targets if not ((found := ATTENTION.match(target.name)) and int(found[1]) in layers)]


def heads_by_layer(keys: Mapping[str, Any], layers: Collection[int]) -> dict[str, list[int]]:
    """Heads of each layer, none where it has no attention."""
    return {
        name: [0 if layer in layers else keys[name] for layer in range(keys["block_count"])]
        for name in ("attention.head_count", "attention.head_count_kv")
    }
