"""QLoRA: while adapters are trained, the frozen weights take four bits (NF4, bitsandbytes; arXiv:2305.14314)."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from swm.errors import ModelError, SettingsError
from swm.merging.stored import read_header
from swm.models.locate import weight_files
from swm.models.processes import is_sharded
from swm.models.save import quiet_transformers
from swm.settings import RecoverySettings


def check_quantizes(settings: RecoverySettings) -> None:
    """Raise SettingsError if weights cannot be quantized here."""
    if settings.quantization == "none":
        return
    if is_sharded():
        raise SettingsError("--quantization nf4 does not work with sharded weights (FSDP). Choose one of the two.")
    if settings.target != "text":
        raise SettingsError(
            f"--target {settings.target} does not work with --quantization nf4: the original would have to be in "
            "memory whole. Choose --target text."
        )
    if settings.train == "weights":
        raise SettingsError(
            "--train weights does not work with --quantization nf4: weights of four bits cannot be trained. Choose "
            "--train adapters."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SettingsError(
            "Training over 4-bit weights needs the package bitsandbytes: pip install bitsandbytes. Or choose another "
            "preset than qlora."
        )


def check_plain(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Raise ModelError if one of these modules is not a plain linear map, which four bits are made for."""
    if others := [name for name in names if type(model.get_submodule(name)) is not nn.Linear]:
        raise ModelError(
            f"{others[0]} cannot be stored in four bits: it is not a plain linear map. Choose another preset than "
            "qlora, or --quantization none."
        )


def skeleton_of(folder: Path) -> PreTrainedModel:
    """The saved model without weights."""
    with torch.device("meta"):
        bare: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return bare


def in_four_bits(folder: Path, names: Sequence[str], device: torch.device) -> PreTrainedModel:
    """A saved model with these linear maps in NF4 and everything else as it is, for training adapters on.

    transformers quantizes each weight as it reads it, so memory never holds the model with all its digits.

    Args:
        names: of plain linear maps, see `check_plain`.
    """
    from bitsandbytes.nn import Linear4bit

    config, bare = AutoConfig.from_pretrained(folder), skeleton_of(folder)
    stored = {name for file in weight_files(folder) for name in read_header(file)}
    if unknown := [name for name in names if f"{name}.weight" not in stored]:
        raise ModelError(
            f"The files in {folder} name the weights of {unknown[0]} otherwise than the model does, so adapters could "
            "not be folded into them. Choose --quantization none."
        )
    others = [name for name, module in bare.named_modules() if type(module) is nn.Linear and name not in names]
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=config.dtype,
        llm_int8_skip_modules=others,
    )
    with quiet_transformers():
        small: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=config.dtype, quantization_config=four_bits, device_map={"": device}
        )
    for module in small.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # evaluating would repack weights so that no gradient passes
    if left := [name for name in names if not isinstance(small.get_submodule(name), Linear4bit)]:
        raise ModelError(f"{left[0]} could not be stored in four bits. Choose --quantization none.")
    return small


def fold_adapter(base: Path, adapted: Any, folder: Path) -> None:
    """Write the base model's files to a folder, its weights with the adapters added, one tensor at a time.

    Memory holds one file of weights: 5 GB in what is saved here, and in most of what is on the hub.

    Args:
        base: folder with the weights that the adapters were trained over, with all their digits.
        adapted: peft's model; its linear maps may be quantized.
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        f"{name}.weight": module
        for name, module in adapted.base_model.model.named_modules()
        if isinstance(module, LoraLayer)
    }
    files = weight_files(base)
    for file in base.iterdir():
        if file not in files and file.is_file() and not file.name.startswith("."):
            shutil.copy2(file, folder / file.name)
    for file in files:
        tensors = {}
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118  no dict
                tensors[name] = stored.get_tensor(name)
                if name in layers:
                    delta = layers[name].get_delta_weight("default").to("cpu", torch.float32)
                    tensors[name] = (tensors[name].float() + delta).to(tensors[name].dtype)
        save_file(tensors, folder / file.name, metadata={"format": "pt"})


def four_bit_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters, quantized ones with their scales."""
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            scales = [state.absmax, *([state.state2.absmax] if state.nested else [])]
            total += sum(scale.numel() * scale.element_size() for scale in scales)
    return total
