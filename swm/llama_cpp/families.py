"""How llama.cpp describes the config of each family, and which configs it would run otherwise than transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from swm.errors import ModelError

GEMMA2_PERIOD, GEMMA3_PERIOD, NOPE_PERIOD = 2, 6, 4  # every so many layers, the last one attends or counts otherwise
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
    count = config.num_hidden_layers
    if config.model_type in ("gemma2", "gemma3_text"):
        period = GEMMA2_PERIOD if config.model_type == "gemma2" else GEMMA3_PERIOD
        expected = ["full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in range(count)]
        return [layer for layer in range(count) if config.layer_types[layer] != expected[layer]]
    if config.model_type == "smollm3":
        rotated = [int((layer + 1) % NOPE_PERIOD != 0) for layer in range(count)]
        return [layer for layer in range(count) if int(config.no_rope_layers[layer]) != rotated[layer]]
    return []


def head_size(config: Any) -> int:
    """Length of a head's query."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads(config: Any) -> int:
    """Number of key and value heads."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def query_scale(config: Any) -> float:
    """Factor for the queries of a Gemma model: llama.cpp takes an attention scale of its own, by the layer count."""
    arch = FAMILIES[config.model_type].arch
    assumed = float(head_size(config))
    if config.num_hidden_layers == BY_LAYERS[arch]:
        assumed = config.hidden_size / config.num_attention_heads
    return math.sqrt(assumed / config.query_pre_attn_scalar)


def _rope(config: Any) -> dict[str, Any]:
    parameters = getattr(config, "rope_parameters", None) or {}
    return dict(parameters.get("full_attention", parameters))


def _activation_refused(config: Any, family: Family) -> str:
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    activation = next((value for name in names if (value := getattr(config, name, None))), family.activations[0])
    return "" if activation in family.activations else f"its activation is {activation}, not {family.activations[0]}"


def _rope_refused(config: Any, family: Family) -> str:
    kind = _rope(config).get("rope_type", "default")
    known = ("default", "linear", *(["llama3"] if family.arch == "llama" else []))
    return "" if kind in known else f"its rotary positions are of type {kind} (written here: {', '.join(known)})"


def _rope_keys(config: Any) -> dict[str, Any]:
    rope = _rope(config)
    share = float(rope.get("partial_rotary_factor", 1.0))
    keys: dict[str, Any] = {
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(head_size(config) * share),
    }
    if rope.get("rope_type") == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return keys


def _context(config: Any) -> int:
    """Longest text; of families whose sliding window llama.cpp ignores, as long as the window."""
    window = config.sliding_window if config.model_type in ("mistral", "mixtral", "phi3") else None
    return int(min(config.max_position_embeddings, window or config.max_position_embeddings))


def _shape_keys(config: Any) -> dict[str, Any]:
    return {
        "block_count": config.num_hidden_layers,
        "context_length": _context(config),
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": kv_heads(config),
        "vocab_size": config.vocab_size,
    }


def _keys(config: Any) -> dict[str, Any]:
    """Of the families with RMS norms and rotary positions."""
    size = head_size(config)
    return {
        **_shape_keys(config),
        **_rope_keys(config),
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }


def _moe_keys(config: Any) -> dict[str, Any]:
    return {
        **_keys(config),
        "expert_count": config.num_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.moe_intermediate_size,
    }


def _mixtral_keys(config: Any) -> dict[str, Any]:
    return {
        **_keys(config),
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
    }


def _phi3_keys(config: Any) -> dict[str, Any]:
    return {
        **_keys(config),
        "attention.sliding_window": config.sliding_window or 0,
        "rope.scaling.original_context_length": getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings,
    }


def _gemma2_keys(config: Any) -> dict[str, Any]:
    return {
        **_keys(config),
        "attention.sliding_window": config.sliding_window,
        "attn_logit_softcapping": float(config.attn_logit_softcapping),
        "final_logit_softcapping": float(config.final_logit_softcapping),
    }


def _gemma3_keys(config: Any) -> dict[str, Any]:
    capped = getattr(config, "final_logit_softcapping", None)
    return {
        **_keys(config),
        "attention.sliding_window": config.sliding_window,
        **({"final_logit_softcapping": float(capped)} if capped else {}),
    }


def _granite_keys(config: Any) -> dict[str, Any]:
    return {
        **_keys(config),
        "attention.scale": float(config.attention_multiplier),
        "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_multiplier),
        "logit_scale": float(config.logits_scaling),
    }


def _stablelm_keys(config: Any) -> dict[str, Any]:
    return {
        **_shape_keys(config),
        **_rope_keys(config),
        "use_parallel_residual": bool(config.use_parallel_residual),
        "attention.layer_norm_epsilon": config.layer_norm_eps,
    }


def _gpt_neox_keys(config: Any) -> dict[str, Any]:
    return {**_stablelm_keys(config), "attention.head_count_kv": config.num_attention_heads}


def _gpt2_keys(config: Any) -> dict[str, Any]:
    return {
        **_shape_keys(config),
        "feed_forward_length": config.n_inner or 4 * config.hidden_size,
        "attention.head_count_kv": config.num_attention_heads,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
    }


def _falcon_keys(config: Any) -> dict[str, Any]:
    return {
        **_shape_keys(config),
        **{name: value for name, value in _rope_keys(config).items() if name != "rope.dimension_count"},
        "feed_forward_length": config.ffn_hidden_size,
        "attention.head_count_kv": falcon_kv_heads(config),
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        "tensor_data_layout": "jploski",
    }


def falcon_kv_heads(config: Any) -> int:
    """Number of key and value heads of a Falcon model: its older configs say it otherwise."""
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


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


def _sliding_refused(config: Any) -> str:
    return "some of its layers slide" if "sliding_attention" in (getattr(config, "layer_types", None) or ()) else ""


FAMILIES = {
    "llama": Family("llama", _keys),
    "mistral": Family("llama", _keys),
    "mixtral": Family("llama", _mixtral_keys),
    "smollm3": Family("smollm3", _keys, _sliding_refused),
    "qwen2": Family("qwen2", _keys, _sliding_refused),
    "qwen3": Family("qwen3", _keys, _sliding_refused),
    "qwen3_moe": Family("qwen3moe", _moe_keys, _moe_refused),
    "phi3": Family("phi3", _phi3_keys),
    "gemma2": Family("gemma2", _gemma2_keys, _gemma2_refused, GELU),
    "gemma3_text": Family("gemma3", _gemma3_keys, _gemma3_refused, GELU),
    "olmo2": Family("olmo2", _keys, own_output=True),
    "granite": Family("granite", _granite_keys),
    "stablelm": Family("stablelm", _stablelm_keys, own_output=True),
    "gpt2": Family("gpt2", _gpt2_keys, _gpt2_refused, GELU),
    "gpt_neox": Family("gptneox", _gpt_neox_keys, activations=GELU, own_output=True),
    "falcon": Family("falcon", _falcon_keys, _falcon_refused, GELU),
}
