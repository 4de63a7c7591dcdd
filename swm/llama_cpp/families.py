"""The families that llama.cpp can run, and the configs that it would compute differently from transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from swm.errors import ModelError
from swm.llama_cpp.config_keys import (
    common_keys,
    falcon_keys,
    gemma2_keys,
    gemma3_keys,
    gpt2_keys,
    gpt_neox_keys,
    granite_keys,
    head_size,
    mixtral_keys,
    moe_keys,
    phi3_keys,
    rope_of,
    stablelm_keys,
)
from swm.models.layer_pattern import kinds_by_place, layer_kinds

LOCAL_ROPE_BASE = 10_000.0  # of Gemma 3's sliding layers, fixed in llama.cpp
SILU = ("silu", "swish")
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # llama.cpp approximates all by tanh
BY_LAYERS = {"gemma2": 46, "gemma3": 62}  # with so many layers, llama.cpp takes the attention scale of the 27B model


@dataclass(frozen=True)
class Family:
    """A family as llama.cpp knows it.

    Attributes:
        arch: llama.cpp's name of it.
        keys: the metadata that its loader reads, by name without the family's prefix.
        refused: why llama.cpp would run a config otherwise than transformers does; empty if it does not.
        activations: names of the only activation function that llama.cpp computes for it.
        own_output: its loader needs the output matrix in the file, also where it is tied to the embedding.
    """

    arch: str
    keys: Callable[[Any], dict[str, Any]]
    refused: Callable[[Any], str] = lambda config: ""
    activations: tuple[str, ...] = SILU
    own_output: bool = False


def family_of(config: Any) -> Family:
    """The family of a config.

    Raises:
        ModelError: if llama.cpp does not know the family, or would run this config otherwise than transformers does.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ModelError(
            f"Models of type {config.model_type} cannot be written as GGUF here. These can: {', '.join(FAMILIES)}."
        )
    if reason := _rope_refused(config, family) or _activation_refused(config, family) or family.refused(config):
        raise ModelError(f"llama.cpp cannot run this {config.model_type} model: {reason}.")
    return family


def period_broken(config: Any) -> list[int]:
    """Layers, from 0, that llama.cpp would run otherwise, since it derives what kind a layer is from its place."""
    kinds = zip(layer_kinds(config), kinds_by_place(config), strict=True)
    return [layer for layer, (kind, taken_for) in enumerate(kinds) if kind != taken_for]


def query_scale(config: Any) -> float:
    """Factor for the queries of a Gemma model: llama.cpp takes an attention scale of its own, by the layer count."""
    arch = FAMILIES[config.model_type].arch
    assumed = float(head_size(config))
    if config.num_hidden_layers == BY_LAYERS[arch]:
        assumed = config.hidden_size / config.num_attention_heads
    return math.sqrt(assumed / config.query_pre_attn_scalar)


def _activation_refused(config: Any, family: Family) -> str:
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    activation = next((value for name in names if (value := getattr(config, name, None))), family.activations[0])
    return "" if activation in family.activations else f"its activation is {activation}, not {family.activations[0]}"


def _rope_refused(config: Any, family: Family) -> str:
    kind = rope_of(config).get("rope_type", "default")
    known = ["default", "linear"]
    known += ["llama3"] if family.arch in ("llama", "granite") else ["longrope"] if family.arch == "phi3" else []
    return "" if kind in known else f"its rotary positions are of type {kind} (written here: {', '.join(known)})"


def _gemma2_refused(config: Any) -> str:
    if not config.attn_logit_softcapping or not config.final_logit_softcapping:
        return "it has no soft caps, which llama.cpp applies to every Gemma 2 model"
    return "it attends in both directions" if getattr(config, "use_bidirectional_attention", False) else ""


def _gpt2_refused(config: Any) -> str:
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        return "its attention is scaled otherwise than that of GPT-2"
    return "it attends to a second model" if config.add_cross_attention else ""


def _gemma3_refused(config: Any) -> str:
    local = (config.rope_parameters or {}).get("sliding_attention", {})
    if local.get("rope_theta", LOCAL_ROPE_BASE) != LOCAL_ROPE_BASE or local.get("rope_type", "default") != "default":
        return f"the rotary positions of its sliding layers are not of base {LOCAL_ROPE_BASE:,.0f}"
    return "it attends in both directions" if getattr(config, "use_bidirectional_attention", False) else ""


def _moe_refused(config: Any) -> str:
    if getattr(config, "use_sliding_window", False) and config.sliding_window:
        return "its layers slide"
    if not config.norm_topk_prob:
        return "the weights of its experts are not normalised"
    if config.decoder_sparse_step != 1 or config.mlp_only_layers:
        return "some of its layers have no experts"
    return ""


def _falcon_refused(config: Any) -> str:
    if config.alibi:
        return "it has ALiBi positions"
    if not config.parallel_attn and not config.new_decoder_architecture:
        return "its attention and MLP follow each other"
    return "its linear maps have biases" if config.bias else ""


def _llama_refused(config: Any) -> str:
    part = rope_of(config).get("partial_rotary_factor", 1.0) != 1
    return "only a part of each head has rotary positions" if part else ""


def _head_refused(config: Any) -> str:
    equal = head_size(config) * config.num_attention_heads == config.hidden_size
    return "" if equal else "its heads are not as wide as its hidden states together"


def _qwen2_refused(config: Any) -> str:
    return _sliding_refused(config) or _head_refused(config)


def _gpt_neox_refused(config: Any) -> str:
    return "" if getattr(config, "attention_bias", True) else "its attention has no biases"


def _sliding_refused(config: Any) -> str:
    return "some of its layers slide" if "sliding_attention" in (getattr(config, "layer_types", None) or ()) else ""


FAMILIES = {
    "llama": Family("llama", common_keys, _llama_refused),
    "mistral": Family("llama", common_keys, _llama_refused),
    "mixtral": Family("llama", mixtral_keys, _llama_refused),
    "smollm3": Family("smollm3", common_keys, _sliding_refused),
    "qwen2": Family("qwen2", common_keys, _qwen2_refused),
    "qwen3": Family("qwen3", common_keys, _sliding_refused),
    "qwen3_moe": Family("qwen3moe", moe_keys, _moe_refused),
    "phi3": Family("phi3", phi3_keys, _head_refused),
    "gemma2": Family("gemma2", gemma2_keys, _gemma2_refused, GELU),
    "gemma3_text": Family("gemma3", gemma3_keys, _gemma3_refused, GELU),
    "olmo2": Family("olmo2", common_keys, own_output=True),
    "granite": Family("granite", granite_keys, _llama_refused),
    "stablelm": Family("stablelm", stablelm_keys, own_output=True),
    "gpt2": Family("gpt2", gpt2_keys, _gpt2_refused, GELU),
    "gpt_neox": Family("gptneox", gpt_neox_keys, _gpt_neox_refused, GELU, own_output=True),
    "falcon": Family("falcon", falcon_keys, _falcon_refused, GELU),
}
