"""Tiny causal LMs with random weights, one per architecture, whose layers differ in strength."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from tests.reference.merging import find_layers, is_norm

VOCABULARY = 64
WIDTH = 16
FULL_EVERY = 3  # of layers with sliding attention, every third sees the whole text
WINDOW_TOKENS = 4

GROUPED_HEADS = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
ONE_KEY_PER_HEAD = {**GROUPED_HEADS, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2}

# What each family's config needs beside the layer count. Attention with a window of four tokens where there is one.
SIZES: dict[str, dict[str, Any]] = {
    "llama": GROUPED_HEADS,
    "mistral": {**GROUPED_HEADS, "head_dim": 8, "sliding_window": WINDOW_TOKENS},
    "qwen2": {**GROUPED_HEADS, "use_sliding_window": True, "sliding_window": WINDOW_TOKENS},
    "qwen3": {**GROUPED_HEADS, "head_dim": 8, "use_sliding_window": True, "sliding_window": WINDOW_TOKENS},
    "gemma2": {**GROUPED_HEADS, "head_dim": 8, "sliding_window": WINDOW_TOKENS, "query_pre_attn_scalar": 8},
    "gemma3_text": {**GROUPED_HEADS, "head_dim": 8, "sliding_window": WINDOW_TOKENS, "query_pre_attn_scalar": 8},
    "phi3": {**ONE_KEY_PER_HEAD, "sliding_window": WINDOW_TOKENS},
    "olmo2": ONE_KEY_PER_HEAD,
    "gpt2": {"n_embd": WIDTH, "n_inner": 32, "n_head": 2, "n_positions": 128},
    "gpt_neox": {name: value for name, value in GROUPED_HEADS.items() if name != "num_key_value_heads"},
    "opt": {
        "hidden_size": WIDTH,
        "word_embed_proj_dim": WIDTH,
        "ffn_dim": 32,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    },
    "falcon": {"hidden_size": WIDTH, "ffn_hidden_size": 32, "num_attention_heads": 2, "bias": True},
    "stablelm": {**ONE_KEY_PER_HEAD, "use_qkv_bias": True},
    "granite": {**GROUPED_HEADS, "residual_multiplier": 0.7, "attention_multiplier": 0.25, "logits_scaling": 2.0},
    "smollm3": {**GROUPED_HEADS, "no_rope_layer_interval": 2},
    "qwen3_moe": {**GROUPED_HEADS, **EXPERTS, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16},
    "mixtral": {**GROUPED_HEADS, **EXPERTS, "head_dim": 8, "num_local_experts": 4},
}
MIXED_ATTENTION = frozenset({"qwen2", "qwen3", "gemma2", "gemma3_text"})
NORM_AFTER_BLOCK = frozenset({"gemma2", "gemma3_text", "olmo2"})  # there the norm alone sets how much a layer changes
FAMILIES = tuple(SIZES)


def tiny_model(family: str, layers: int = 8, seed: int = 0) -> PreTrainedModel:
    """A causal LM of width 16 and 64 words, in eval mode, float32; the same weights for the same seed.

    Some layers change the hidden state much and some little, so that one merge costs more than another.
    """
    config = CONFIG_MAPPING[family](**SIZES[family], **_common_settings(family, layers))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    _draw_weights(model, 1.0, generator)
    for layer, strength in zip(find_layers(model), _strengths(family, layers, generator), strict=True):
        _draw_weights(layer, strength, generator)
    return model.requires_grad_(False)


def random_tokens(texts: int, length: int, seed: int = 0) -> Tensor:
    """Ids of random texts, shape (texts, length); the special ids 0, 1 and 2 are left out."""
    return torch.randint(3, VOCABULARY, (texts, length), generator=torch.Generator().manual_seed(seed))


def _common_settings(family: str, layers: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family in MIXED_ATTENTION:
        settings["layer_types"] = [
            "full_attention" if layer % FULL_EVERY == FULL_EVERY - 1 else "sliding_attention" for layer in range(layers)
        ]
    return settings


def _strengths(family: str, layers: int, generator: torch.Generator) -> list[float]:
    """A factor per layer, spread evenly on a log scale, in random order."""
    weakest, strongest = (0.15, 0.5) if family in NORM_AFTER_BLOCK else (0.3, 0.9)
    order = torch.randperm(layers, generator=generator)
    return [weakest * (strongest / weakest) ** (int(place) / max(layers - 1, 1)) for place in order]


@torch.no_grad()
def _draw_weights(module: nn.Module, strength: float, generator: torch.Generator) -> None:
    """Matrices of unit gain, norms around 1, small biases; all of them times `strength`."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if is_norm(part) and name == "weight":
                # Gemma's norms multiply by 1 + weight.
                offset = 1.0 if type(part).__name__.startswith("Gemma") else 0.0
                parameter.copy_(strength * (1 + 0.1 * noise) - offset)
            elif parameter.ndim >= 2:
                gain = 1.0 if isinstance(part, nn.Embedding) else 1 / math.sqrt(WIDTH)
                parameter.copy_(strength * gain * noise)
            else:
                parameter.copy_(strength * 0.1 * noise)
