"""QLoRA: while adapters are trained, the frozen weights take four bits (NF4, bitsandbytes; arXiv:2305.14314)."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from swm.errors import ModelError, SettingsError
from swm.models.processes import is_sharded
from swm.settings import RecoverySettings

BLOCK = 64  # numbers that share a scale


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


def in_four_bits(model: PreTrainedModel, names: Sequence[str]) -> PreTrainedModel:
    """A copy of the model with these linear maps in NF4 and everything else as it is; for training adapters on.

    The model itself moves to the CPU, to fold the adapters into: its weights keep all their digits. Products are
    computed in its precision.

    Args:
        names: of plain linear maps, see `check_plain`.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    device, dtype = model.device, model.dtype
    model.to("cpu")  # type: ignore[arg-type]
    maps: dict[str, Any] = {name: model.get_submodule(name) for name in names}
    shared: dict[int, Any] = {id(module.weight): module.weight for module in maps.values()}  # not copied
    small: PreTrainedModel = copy.deepcopy(model, shared)
    for name, module in maps.items():
        bias: Any = small.get_submodule(name).bias
        four: Any = Linear4bit(
            module.in_features, module.out_features, bias is not None, dtype, quant_type="nf4", device="meta"
        )
        four.weight = Params4bit(module.weight.detach().clone(), requires_grad=False, quant_type="nf4", blocksize=BLOCK)
        four.bias = bias
        four.support_avx512bf16_for_cpu = False  # evaluating would repack weights in a form that passes no gradient
        parent, _, child = name.rpartition(".")
        setattr(small.get_submodule(parent), child, four.to(device))
    small.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft asks for it
    return small.to(device)  # type: ignore[arg-type]


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
