"""The metadata that llama.cpp's loader reads of each family, by name without the family's prefix."""

from __future__ import annotations

from typing import Any


def head_size(config: Any) -> int:
    """Length of a head's query."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads(config: Any) -> int:
    """Number of key and value heads."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def rope_of(config: Any) -> dict[str, Any]:
    """Settings of the rotary positions; of Gemma 3, those of its layers with full attention."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return dict(parameters.get("full_attention", parameters))


def rope_keys(config: Any) -> dict[str, Any]:
    """Base, dimensions and linear scaling of the rotary positions."""
    rope = rope_of(config)
    share = float(rope.get("partial_rotary_factor", 1.0))
    keys: dict[str, Any] = {
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(head_size(config) * share),
    }
    if rope.get("rope_type") == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return keys


def longest_text(config: Any) -> int:
    """Longest text; of families whose sliding window llama.cpp ignores, as long as the window.

    With `longrope`, the length up to which positions are not stretched: in longer contexts llama.cpp stretches them for
    any text, transformers only for longer texts.
    """
    window = config.sliding_window if config.model_type in ("mistral", "mixtral", "phi3") else None
    rope = rope_of(config)
    short = rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else None
    return int(min(length for length in (config.max_position_embeddings, window, short) if length))


def shape_keys(config: Any) -> dict[str, Any]:
    """Sizes that all families have."""
    return {
        "block_count": config.num_hidden_layers,
        "context_length": longest_text(config),
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": kv_heads(config),
        "vocab_size": config.vocab_size,
    }


def common_keys(config: Any) -> dict[str, Any]:
    """Of the families with RMS norms and rotary positions."""
    size = head_size(config)
    return {
        **shape_keys(config),
        **rope_keys(config),
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }


def moe_keys(config: Any) -> dict[str, Any]:
    """Of Qwen3-MoE: number and size of the experts as well."""
    return {
        **common_keys(config),
        "expert_count": config.num_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.moe_intermediate_size,
    }


def mixtral_keys(config: Any) -> dict[str, Any]:
    """Of Mixtral: number of experts as well."""
    return {
        **common_keys(config),
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
    }


def phi3_keys(config: Any) -> dict[str, Any]:
    """Of Phi-3: where its positions begin to stretch as well, and what attention is then multiplied by."""
    rope = rope_of(config)
    stretched: dict[str, Any] = {}
    if rope.get("rope_type") == "longrope":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        stretched["rope.scaling.attn_factor"] = float(ROPE_INIT_FUNCTIONS["longrope"](config)[1])
    return {
        **common_keys(config),
        "attention.sliding_window": config.sliding_window or 0,
        "rope.scaling.original_context_length": rope.get("original_max_position_embeddings")
        or config.max_position_embeddings,
        **stretched,
    }


def gemma2_keys(config: Any) -> dict[str, Any]:
    """Of Gemma 2: window and soft caps as well."""
    return {
        **common_keys(config),
        "attention.sliding_window": config.sliding_window,
        "attn_logit_softcapping": float(config.attn_logit_softcapping),
        "final_logit_softcapping": float(config.final_logit_softcapping),
    }


def gemma3_keys(config: Any) -> dict[str, Any]:
    """Of Gemma 3: window, and the soft cap if it has one."""
    capped = getattr(config, "final_logit_softcapping", None)
    return {
        **common_keys(config),
        "attention.sliding_window": config.sliding_window,
        **({"final_logit_softcapping": float(capped)} if capped else {}),
    }


def granite_keys(config: Any) -> dict[str, Any]:
    """Of Granite: its four multipliers as well."""
    return {
        **common_keys(config),
        "attention.scale": float(config.attention_multiplier),
        "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_multiplier),
        "logit_scale": float(config.logits_scaling),
    }


def stablelm_keys(config: Any) -> dict[str, Any]:
    """Of StableLM: layer norms, and rotary positions for a part of each head."""
    return {
        **shape_keys(config),
        **rope_keys(config),
        "use_parallel_residual": bool(config.use_parallel_residual),
        "attention.layer_norm_epsilon": config.layer_norm_eps,
    }


def gpt_neox_keys(config: Any) -> dict[str, Any]:
    """Of GPT-NeoX."""
    return {**stablelm_keys(config), "attention.head_count_kv": config.num_attention_heads}


def gpt2_keys(config: Any) -> dict[str, Any]:
    """Of GPT-2: learnt positions."""
    return {
        **shape_keys(config),
        "feed_forward_length": config.n_inner or 4 * config.hidden_size,
        "attention.head_count_kv": config.num_attention_heads,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
    }


def falcon_keys(config: Any) -> dict[str, Any]:
    """Of Falcon."""
    return {
        **shape_keys(config),
        **{name: value for name, value in rope_keys(config).items() if name != "rope.dimension_count"},
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
