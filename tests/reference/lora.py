"""A LoRA adapter folder as peft writes it, folded into the weights by hand."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

KEY_PREFIX = "base_model.model."
NOT_COVERED = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters", "lora_bias")


@torch.no_grad()
def folded_copy(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A copy of the model with W + (alpha / r) B A for each weight that the adapter has a pair A, B of.

    Args:
        model: the model that the adapter was trained on; not changed.
        folder: holds adapter_model.safetensors and adapter_config.json.

    Raises:
        ValueError: if the adapter uses what is not plain LoRA, or holds tensors that are not pairs A, B.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; alpha / sqrt(r) with use_rslora (arXiv:2312.03732).
    """
    settings = json.loads((folder / "adapter_config.json").read_text())
    _refuse_what_is_not_plain_lora(settings)
    result = copy.deepcopy(model)
    for module_name, (a, b) in adapter_pairs(folder).items():
        module = result.get_submodule(module_name)
        delta = weight_change(a, b, settings)
        # Conv1D keeps its weight as (in, out), fan_in_fan_out in peft; Linear as (out, in).
        change = delta.T if isinstance(module, Conv1D) else delta
        weight = module.get_parameter("weight")
        weight.copy_(weight.double() + change)
    return result


def weight_change(a: Tensor, b: Tensor, settings: dict[str, Any]) -> Tensor:
    """(alpha / r) B A, shape (out, in), float64; A has shape (r, in) and B (out, r)."""
    rank = settings["r"]
    if a.shape[0] != rank or b.shape[1] != rank:
        raise ValueError(f"A {tuple(a.shape)} and B {tuple(b.shape)} are not of rank {rank}.")
    scale = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return scale * (b.double() @ a.double())


def adapter_pairs(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the name of the module whose weight they change."""
    tensors = load_file(folder / "adapter_model.safetensors")
    names = {_module_name(key) for key in tensors}
    return {
        name: (tensors[f"{KEY_PREFIX}{name}.lora_A.weight"], tensors[f"{KEY_PREFIX}{name}.lora_B.weight"])
        for name in sorted(names)
    }


def _module_name(key: str) -> str:
    for ending in (".lora_A.weight", ".lora_B.weight"):
        if key.startswith(KEY_PREFIX) and key.endswith(ending):
            return key.removeprefix(KEY_PREFIX).removesuffix(ending)
    raise ValueError(f"The adapter holds '{key}', which is neither an A nor a B.")


def _refuse_what_is_not_plain_lora(settings: dict[str, Any]) -> None:
    used = [name for name in NOT_COVERED if settings.get(name)]
    if used or settings.get("bias", "none") != "none":
        raise ValueError(f"The reference folds plain LoRA only; this adapter uses {', '.join(used) or 'bias'}.")
