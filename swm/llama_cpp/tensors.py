"""How each family's weights are named and laid out in a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gguf
import torch
from torch import Tensor

from swm.errors import ModelError
from swm.llama_cpp.config_keys import falcon_kv_heads, head_size, kv_heads, rope_of
from swm.llama_cpp.families import Family, query_scale
from swm.models.from_gguf import rope_factors

Make = Callable[[Sequence[Tensor]], Tensor]

WITHOUT_BIASES = ("smollm3", "qwen3", "qwen3moe", "phi3", "gemma2", "gemma3", "olmo2")
LEFT_OUT = re.compile(r"\.(attn\.(masked_)?bias|attention\.(masked_)?bias|rotary_emb\.inv_freq)$")  # buffers
EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(\w+)\.weight$")
FUSED_EXPERTS = re.compile(r"^(.*\.experts)\.gate_up_proj$")
HEAD_NORM = re.compile(r"^(.*\.[qk]_layernorm)\.norms\.(\d+)\.weight$")
PER_TOKEN = tuple(
    f"{name}.weight" for name in ("embed_tokens", "wte", "word_embeddings", "embed_in", "embed_out", "lm_head")
)


@dataclass(frozen=True)
class Target:
    """A tensor of the new file: made from the folder's tensors with these names."""

    name: str
    sources: tuple[str, ...]
    make: Make

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Its shape, given those of the sources; computes nothing."""
        return tuple(self.make([torch.empty(shapes[name], device="meta") for name in self.sources]).shape)


def targets(config: Any, family: Family, names: Sequence[str], tokens: int) -> list[Target]:
    """The tensors of the GGUF file, in the order of its layers.

    Args:
        names: the tensors in the folder.
        tokens: in the file's vocabulary; the embedding is cut to them.

    Raises:
        ModelError: if llama.cpp has no place for a tensor.
    """
    made = _pieces(config, family, names, tokens)
    outputs = {target.name: target for target in made}
    if family.own_output and "output.weight" not in outputs:
        embedding = outputs["token_embd.weight"]
        made.append(Target("output.weight", embedding.sources, embedding.make))
    if factors := rope_factors(config):
        made.append(Target("rope_freqs.weight", (), partial(_given, torch.tensor(factors))))
    made += _stretching(config)
    return sorted(made, key=lambda target: [int(part) if part.isdigit() else -1 for part in target.name.split(".")[:2]])


def _stretching(config: Any) -> list[Target]:
    """Of `longrope`: what each frequency is divided by in long texts and in short ones."""
    rope = rope_of(config)
    if rope.get("rope_type") != "longrope":
        return []
    size = int(head_size(config) * rope.get("partial_rotary_factor", 1.0)) // 2
    made = []
    for name in ("long", "short"):
        factors = torch.tensor(rope[f"{name}_factor"], dtype=torch.float32)
        if factors.shape != (size,):
            raise ModelError(f"The model's config has {factors.numel()} factors for {name} texts instead of {size}.")
        made.append(Target(f"rope_factors_{name}.weight", (), partial(_given, factors)))
    return made


def _given(tensor: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """A tensor that no weights go into."""
    return tensor


def permuted(heads: int, tensor: Tensor) -> Tensor:
    """A query or key projection with the two halves of each head interleaved, as llama.cpp rotates them."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def ungrouped(groups: int, queries: int, tensor: Tensor) -> Tensor:
    """A fused projection stored in groups of queries, a key and a value: all queries, all keys, all values."""
    rows = tensor.reshape(groups, queries + 2, tensor.shape[0] // groups // (queries + 2), *tensor.shape[1:])
    parts = (rows[:, :queries], rows[:, queries : queries + 1], rows[:, queries + 1 :])
    return torch.cat([part.flatten(0, 2) for part in parts])


def _pieces(config: Any, family: Family, names: Sequence[str], tokens: int) -> list[Target]:
    place = _Names(family.arch, config.num_hidden_layers)
    grouped: dict[str, list[tuple[int, str]]] = {}
    made = []
    for name in names:
        if name.endswith(".bias") and family.arch in WITHOUT_BIASES:
            raise ModelError(f"llama.cpp has no place for biases ({name}) in a model of type {family.arch}.")
        if LEFT_OUT.search(name) or (config.tie_word_embeddings and name in ("lm_head.weight", "embed_out.weight")):
            continue
        if match := EXPERT.match(name):
            grouped.setdefault(f"{match[1]}.{match[3]}.weight", []).append((int(match[2]), name))
        elif match := HEAD_NORM.match(name):
            grouped.setdefault(f"{match[1]}.weight", []).append((int(match[2]), name))
        elif match := FUSED_EXPERTS.match(name):
            for half, part in enumerate(("gate_proj", "up_proj")):
                make = partial(_half, half)
                made.append(Target(place(f"{match[1]}.{part}.weight"), (name,), make))
        else:
            make = partial(_changed, config, family.arch, name, tokens)
            made.append(Target(place(name if name.endswith((".weight", ".bias")) else f"{name}.weight"), (name,), make))
    for name, members in grouped.items():
        made.append(Target(place(name), tuple(member for _, member in sorted(members)), _stacked))
    return made


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors))


def _half(half: int, tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0].chunk(2, dim=-2)[half]


class _Names:
    """llama.cpp's name for each tensor of a folder."""

    def __init__(self, arch: str, layers: int) -> None:
        numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
        self._names = gguf.get_tensor_name_map(numbers[arch], layers)
        self._arch = arch

    def __call__(self, name: str) -> str:
        known = self._names.get_name(name, (".weight", ".bias"))
        if known is None:
            raise ModelError(f"llama.cpp has no place for tensor {name} in a model of type {self._arch}.")
        return known


def _changed(config: Any, arch: str, name: str, tokens: int, tensors: Sequence[Tensor]) -> Tensor:
    """One tensor as llama.cpp lays it out."""
    (tensor,) = tensors
    if name.endswith(PER_TOKEN):
        return tensor[:tokens]
    change = LAYOUTS.get(arch)
    return change(config, name, tensor) if change else tensor


def _llama(config: Any, name: str, tensor: Tensor) -> Tensor:
    if re.search(r"\.q_proj\.(weight|bias)$", name):
        return permuted(config.num_attention_heads, tensor)
    return permuted(kv_heads(config), tensor) if re.search(r"\.k_proj\.(weight|bias)$", name) else tensor


def _gemma(config: Any, name: str, tensor: Tensor) -> Tensor:
    """Norms multiply by 1 + weight in transformers; queries are scaled as llama.cpp then divides them."""
    if name.endswith("norm.weight"):
        tensor = tensor.float() + 1
    scaled = ".q_norm.weight" if config.model_type == "gemma3_text" else ".q_proj.weight"
    scale = query_scale(config)
    return tensor.float() * scale if name.endswith(scaled) and scale != 1 else tensor


def _gpt2(config: Any, name: str, tensor: Tensor) -> Tensor:
    return tensor.T if re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name) else tensor


def _gpt_neox(config: Any, name: str, tensor: Tensor) -> Tensor:
    return ungrouped(config.num_attention_heads, 1, tensor) if ".query_key_value." in name else tensor


def _falcon(config: Any, name: str, tensor: Tensor) -> Tensor:
    groups = falcon_kv_heads(config)
    return ungrouped(groups, config.num_attention_heads // groups, tensor) if ".query_key_value." in name else tensor


LAYOUTS: dict[str, Callable[[Any, str, Tensor], Tensor]] = {
    **dict.fromkeys(("llama", "smollm3", "granite"), _llama),
    **dict.fromkeys(("gemma2", "gemma3"), _gemma),
    "gpt2": _gpt2,
    "gptneox": _gpt_neox,
    "falcon": _falcon,
}
