"""Load models and their tokenizers, and tell of a model before it is loaded."""

from __future__ import annotations

import os
import shutil
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from swm.errors import ExperimentError, ModelError, SettingsError, first_line
from swm.models.decoder import find_decoder, parameter_count
from swm.models.locate import (
    check_size,
    config_errors,
    decoder_config,
    load_config,
    model_folder,
    refuse_pickle,
    skeleton,
    weight_files,
)
from swm.models.offload import device_map, room_here
from swm.models.processes import world_size
from swm.models.save import safetensors_error, save_model
from swm.settings import PRECISIONS
from swm.workspace.files import clean_up, disk_errors, full_disk_message, home, is_full_disk, neighbour
from swm.workspace.machine import check_memory

__all__ = ["config_facts", "load_model", "load_tokenizer", "save_model"]  # those that others rely on

WEEK = 7 * 86_400.0  # seconds
DTYPES = ("auto", "float32", "bfloat16", "float16")
# Each goes through the whole engine in tests/test_families.py. Others are tried by structure.
TESTED_FAMILIES = {
    "llama": "Llama 1-3, Vicuna, SmolLM2 and others of that architecture",
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
    "smollm3": "SmolLM3 (layers without rotary positions)",
    "qwen3_moe": "Qwen3-MoE (experts are merged one by one; LoRA leaves them alone)",
    "mixtral": "Mixtral (experts are merged one by one; LoRA leaves them alone)",
}


def load_model(
    name: str, dtype: str = "auto", device: str = "auto", offload: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder-only language model in eval mode, and its tokenizer.

    Args:
        name: a bundled model's name, a Hugging Face folder, a `.gguf` file, or a hub id.
        dtype: "auto" (what the checkpoint says; float32 for GGUF), "float32", "bfloat16" or "float16".
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1", ...
        offload: let a model that has no room on the device lie on several, and on disk; see `swm.models.offload`.

    Raises:
        ModelError: if it is not there, not decoder-only, damaged, or would need pickle or remote code.
    """
    check_dtype(dtype)
    transformers_logging.disable_progress_bar()
    folder = model_folder(name)
    config = decoder_config(folder, name)
    refuse_pickle(folder, name)
    stored = sum(file.stat().st_size for file in weight_files(folder))
    check_size(config, name, stored)
    if offload and device == "auto" and (places := _places(config, name, dtype)):
        return _offloaded(folder, name, dtype, config, places), load_tokenizer(name)
    check_memory(f"Loading {name}", _bytes_in_memory(stored, config, dtype))
    model = _load_weights(folder, name, dtype, config)
    return model.to(pick_device(device)).eval(), load_tokenizer(name)  # type: ignore[arg-type]


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model named as in `load_model`; without loading the weights."""
    folder = model_folder(name)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises Exception itself for a damaged file
        raise ModelError(
            f"The tokenizer of {name} cannot be loaded: {first_line(error)} Put the tokenizer's files "
            "(tokenizer.json, tokenizer_config.json) into the model's folder."
        ) from None


def config_facts(name: str, dtype: str = "auto") -> dict[str, Any]:
    """What a page shows of a model before it is loaded: architecture, layers, width, parameters, bytes in `dtype`.

    Parameters are counted on the meta device: no weight is read.
    """
    check_dtype(dtype)
    config = load_config(name)
    model = skeleton(config, name)
    decoder = find_decoder(model)
    saved = getattr(config, "dtype", None) if dtype == "auto" else getattr(torch, dtype)
    bytes_each = saved.itemsize if isinstance(saved, torch.dtype) else 4
    return {
        "architecture": type(model).__name__,
        "layers": len(decoder.layers),
        "width": config.get_text_config().hidden_size,
        "parameters": parameter_count(model),
        "parameters_per_layer": parameter_count(decoder.layers[0]),
        "dtype": str(saved).removeprefix("torch.") if saved else "float32",
        "size_bytes": parameter_count(model) * bytes_each,
    }


def check_loadable(name: str) -> None:
    """Raise ModelError if the weights are none that can be loaded and merged; none is read."""
    folder = model_folder(name)
    config = decoder_config(folder, name)
    refuse_pickle(folder, name)
    how = getattr(config, "quantization_config", None) or getattr(config.get_text_config(), "quantization_config", None)
    if how:
        kind = how.get("quant_method", "") if isinstance(how, dict) else getattr(how, "quant_method", "")
        raise ModelError(
            f"The weights of {name} are quantised ({kind or 'by an unnamed method'}), and such weights cannot be "
            "added up. Use the model in bfloat16 or float32."
        )
    weight_files(folder)


def check_dtype(dtype: str) -> None:
    """Raise SettingsError unless it is one of DTYPES."""
    if dtype not in DTYPES:
        raise SettingsError(f"'{dtype}' is not a number format. Choose one of: {', '.join(DTYPES)}.")


def pick_device(device: str) -> torch.device:
    """The device of that name; for "auto" a GPU if there is one. Raises SettingsError if it cannot be used."""
    if device == "auto":  # one of several processes takes the GPU of its number
        own = os.environ.get("LOCAL_RANK", "")
        return torch.device(f"cuda:{own}" if own else "cuda") if torch.cuda.is_available() else torch.device("cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"Device '{device}' cannot be used: {first_line(error)} Choose auto or cpu.") from None
    return picked


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 take clearly less time here than in float32: the processor says so.

    Not measured: a machine that is busy for a moment would choose another format, and so another plan. On a processor
    with AVX512-BF16 products took half the time.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def fast_format(model: PreTrainedModel, precision: str = "auto") -> bool:
    """Whether to try things out on the model in bfloat16 instead of its own format.

    Args:
        precision: one of PRECISIONS; "auto" where that is faster.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f"'{precision}' is not a precision. Choose one of: {', '.join(PRECISIONS)}.")
    wanted = precision == "bfloat16" or (precision == "auto" and bfloat16_is_faster(model.device))
    return model.dtype == torch.float32 and wanted


def _offloaded(folder: Path, name: str, dtype: str, config: Any, places: dict[str, Any]) -> PreTrainedModel:
    clean_up(home() / "cache", older_than=WEEK)  # what a killed process left
    converted = neighbour(home() / "cache" / "converted", "new")
    with ExitStack() as removal, disk_errors(converted, 0):
        converted.mkdir(parents=True)
        removal.callback(shutil.rmtree, converted, ignore_errors=True)
        model = _load_weights(folder, name, dtype, config, {"device_map": places, "offload_folder": converted})
        weakref.finalize(model, removal.pop_all().close)
    if model.device.type == "meta":
        raise ModelError(
            f"There is no room for so much as the embedding of {name}: {room_here()['cpu'] / 2**30:,.2f} GiB of memory "
            "are free for it. Close other programs or raise SWM_MEMORY."
        )
    return model.eval()


def _places(config: Any, name: str, dtype: str) -> dict[str, Any] | None:
    if world_size() > 1:
        return None  # each process has a device of its own
    model = skeleton(config, name)
    form = model.dtype if dtype == "auto" else getattr(torch, dtype)
    return device_map(model, list(find_decoder(model).layers), form, room_here())


def _bytes_in_memory(stored: int, config: Any, dtype: str) -> int:
    """Bytes of the weights once loaded; the config says in which format they are stored."""
    saved = getattr(config, "dtype", None)
    if dtype == "auto" or not isinstance(saved, torch.dtype):
        return stored
    return stored * cast(int, getattr(torch, dtype).itemsize) // saved.itemsize


def _load_weights(
    folder: Path, name: str, dtype: str, config: Any, where: dict[str, Any] | None = None
) -> PreTrainedModel:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **(where or {}),
        )
    except ImportError as error:
        raise ModelError(
            f"{name} needs a library that is not there: {first_line(error)} Quantised models cannot be merged: load "
            "the one in bfloat16 or float32."
        ) from None
    except (*config_errors(), safetensors_error()) as error:
        if is_full_disk(error):
            raise ExperimentError(full_disk_message(home(), 0)) from None
        raise ModelError(
            f"The weights of {name} cannot be loaded: {first_line(error)} The files are damaged, incomplete or of "
            "another config. Copy or download them again."
        ) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"The weights of {name} are incomplete: {missing[0]} and {len(missing) - 1} more are not in the "
            "safetensors files. Copy or download them again."
        )
    return cast(PreTrainedModel, model)
