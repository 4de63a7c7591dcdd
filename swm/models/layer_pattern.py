"""The families in which llama.cpp takes a layer's kind from its place: every so many layers, one of another kind.

transformers keeps a list with each layer's kind, so there any layers may go. In llama.cpp, the layers of a smaller
model must have the kinds that the original has at the same places.
"""

from __future__ import annotations

from typing import Any

GEMMA2_PERIOD, GEMMA3_PERIOD, NOPE_PERIOD = 2, 6, 4  # every so many layers, the last one attends or counts otherwise
FULL, SLIDING = "full attention", "sliding attention"
ROTARY, NO_ROTARY = "rotary positions", "no positions"


def layer_kinds(config: Any) -> list[str]:
    """The kind of each layer, lowest first; empty for families without such a pattern."""
    config = config.get_text_config()
    if config.model_type in ("gemma2", "gemma3_text"):
        return [SLIDING if kind == "sliding_attention" else FULL for kind in config.layer_types]
    if config.model_type == "smollm3":
        return [ROTARY if int(rotary) else NO_ROTARY for rotary in config.no_rope_layers]
    return []


def kinds_by_place(config: Any) -> list[str]:
    """The kind that llama.cpp takes each layer for; empty for families without such a pattern."""
    config = config.get_text_config()
    periods = {
        "gemma2": (GEMMA2_PERIOD, SLIDING, FULL),
        "gemma3_text": (GEMMA3_PERIOD, SLIDING, FULL),
        "smollm3": (NOPE_PERIOD, ROTARY, NO_ROTARY),
    }
    if config.model_type not in periods:
        return []
    period, usual, last = periods[config.model_type]
    return [usual if (layer + 1) % period else last for layer in range(config.num_hidden_layers)]


def placed_kinds(config: Any) -> list[str]:
    """The kinds that a smaller model's layers must keep to for llama.cpp; empty if there is nothing to keep to."""
    kinds = layer_kinds(config)
    return kinds if kinds == kinds_by_place(config) else []
