"""Load models and their tokenizers; give facts about a model before it is loaded."""

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

from swm.disk.files import clean_up, disk_errors, full_disk_message, home, is_full_disk, neighbour
from swm.disk.machine import check_memory
from swm.errors import ExperimentError, ModelError, SettingsError, first_line
from swm.models.decoder import find_decoder, parameter_count
from swm.models.known import UNSUPPORTED
from swm.models.layer_pattern import placed_kinds
from swm.models.locate import (
    check_size,
    config_alone,
    config_errors,
    decoder_config,
    model_folder,
    refuse_pickle,
    skeleton,
    weight_files,
)
from swm.models.offload import device_map, room_here
from swm.models.processes import world_size
from swm.models.save import safetensors_error, save_model
from swm.progress import Progress, no_progress
from swm.settings import PRECISIONS

__all__ = ["config_facts", "load_model", "load_tokenizer", "save_model"]  # the names that other code relies on

WEEK = 7 * 86_400.0  # seconds
DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    name: str, dtype: str = "auto", device: str = "auto", offload: bool = False, spare: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder-only language model in eval mode, and its tokenizer.

    Args:
        name: a bundled model's name, a Hugging Face folder, a `.gguf` file, or a hub id.
        dtype: "auto" (as in the checkpoint; float32 for GGUF), "float32", "bfloat16" or "float16".
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
        offload: spread a model that does not fit on the device over several devices and disk; see
            `swm.models.offload`.
        spare: with `offload`, bytes of the first device that weights leave free.

    Raises:
        ModelError: if the model is missing, not decoder-only, damaged, or needs pickle or remote code.
    """
    check_dtype(dtype)
    transformers_logging.disable_progress_bar()
    folder = model_folder(name, dtype)
    config = decoder_config(folder, name)
    refuse_pickle(folder, name)
    stored = sum(file.stat().st_size for file in weight_files(folder))
    check_size(config, name, stored)
    if offload and device == "auto" and (places := _places(config, name, dtype, spare)):
        return _offloaded(folder, name, dtype, config, places), load_tokenizer(name)
    check_memory(f"Loading {name}", _bytes_in_memory(stored, config, dtype))
    model = _load_weights(folder, name, dtype, config)
    return model.to(pick_device(device)).eval(), load_tokenizer(name)  # type: ignore[arg-type]


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, named as in `load_model`; loads no weights."""
    folder = model_folder(name)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises a bare Exception for a damaged file
        raise ModelError(
            f"Cannot load the tokenizer of {name}: {first_line(error)} Put the tokenizer's files "
            "(tokenizer.json, tokenizer_config.json) into the model's folder."
        ) from None


def config_facts(name: str, dtype: str = "auto") -> dict[str, Any]:
    """Facts about a model before it is loaded: architecture, layers, width, parameters, size in `dtype`.

    With `cache_bytes_per_token`, which one layer keeps in keys and values, if the config says it; with `layer_kinds` if
    llama.cpp takes a layer's kind from its place: see `models.layer_pattern`; with `layer_parameters` if layers are of
    several sizes. Parameters are counted on the meta device: no weight is read, converted or downloaded.
    """
    check_dtype(dtype)
    config = config_alone(name)
    model = skeleton(config, name)
    decoder = find_decoder(model)
    each = [parameter_count(layer) for layer in decoder.layers]
    saved = getattr(config, "dtype", None) if dtype == "auto" else getattr(torch, dtype)
    bytes_each = saved.itemsize if isinstance(saved, torch.dtype) else 4
    return {
        "architecture": type(model).__name__,
        "layers": len(decoder.layers),
        "width": config.get_text_config().hidden_size,
        "vocabulary": config.get_text_config().vocab_size,
        "parameters": parameter_count(model),
        "parameters_per_layer": round(sum(each) / len(each)),
        "dtype": str(saved).removeprefix("torch.") if saved else "float32",
        "size_bytes": parameter_count(model) * bytes_each,
        **({"cache_bytes_per_token": cached * bytes_each} if (cached := _cached_numbers(config)) else {}),
        **({"layer_kinds": kinds} if (kinds := placed_kinds(config)) else {}),
        **({"layer_parameters": each} if len({*each}) > 1 else {}),
    }


def _cached_numbers(config: Any) -> int:
    """Keys and values that an attention layer keeps of each token, as numbers; 0 if the config does not say it."""
    text = config.get_text_config()
    try:
        heads = getattr(text, "num_attention_heads", None)
        if not isinstance(heads, int) or hasattr(text, "kv_lora_rank"):  # latent attention keeps something else
            return 0
        kept = heads
        if hasattr(type(text)(), "num_key_value_heads"):  # a stray entry of another family says nothing
            kept = text.num_key_value_heads or heads
        elif getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
            kept = 1  # newer Falcons keep every head's, copied from those of its group
        return int(2 * kept * (getattr(text, "head_dim", None) or text.hidden_size // heads))
    except (AttributeError, TypeError, ValueError, RuntimeError):  # layers that differ raise RuntimeError, see Gemma 4
        return 0


def check_loadable(name: str, dtype: str = "auto", progress: Progress = no_progress) -> None:
    """Raise ModelError if the weights cannot be loaded and merged; reads none of them, but converts a GGUF file."""
    folder = model_folder(name, dtype, progress)
    config = decoder_config(folder, name)
    refuse_pickle(folder, name)
    text_config = config.get_text_config()
    if reason := UNSUPPORTED.get(text_config.model_type):
        raise ModelError(f"{name} ({text_config.model_type}) is not supported: {reason}. Choose another model.")
    settings = getattr(config, "quantization_config", None) or getattr(text_config, "quantization_config", None)
    if settings:
        key = "quant_method"
        method = settings.get(key, "") if isinstance(settings, dict) else getattr(settings, key, "")
        raise ModelError(
            f"The weights of {name} are quantised ({method or 'unnamed method'}), and quantised weights cannot be "
            "merged. Use the model in bfloat16 or float32."
        )
    weight_files(folder)


def check_dtype(dtype: str) -> None:
    """Raise SettingsError unless `dtype` is one of DTYPES."""
    if dtype not in DTYPES:
        raise SettingsError(f"Unknown precision (dtype) '{dtype}'. Choose one of: {', '.join(DTYPES)}.")


def pick_device(device: str) -> torch.device:
    """The device of that name; for "auto" a GPU if there is one. Raises SettingsError if it is not usable."""
    if device == "auto":  # each of several processes takes the GPU of its local rank
        own = os.environ.get("LOCAL_RANK", "")
        return torch.device(f"cuda:{own}" if own else "cuda") if torch.cuda.is_available() else torch.device("cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"Cannot use device '{device}': {first_line(error)} Choose auto or cpu.") from None
    return picked


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are much faster here than in float32, judged by the processor's features.

    Not measured: on a machine that happens to be busy, a measurement could choose another precision, and so another
    plan. On a processor with AVX512-BF16, products took half the time.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def fast_format(model: PreTrainedModel, precision: str = "auto") -> bool:
    """Whether a search computes in bfloat16 instead of the model's own precision.

    Args:
        precision: one of PRECISIONS; "auto" takes bfloat16 where it is faster.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f"Unknown precision '{precision}'. Choose one of: {', '.join(PRECISIONS)}.")
    use_bfloat16 = precision == "bfloat16" or (precision == "auto" and bfloat16_is_faster(model.device))
    return model.dtype == torch.float32 and use_bfloat16


def _offloaded(folder: Path, name: str, dtype: str, config: Any, places: dict[str, Any]) -> PreTrainedModel:
    clean_up(home() / "cache", older_than=WEEK)  # files that killed processes left behind
    converted = neighbour(home() / "cache" / "converted", "new")
    with ExitStack() as removal, disk_errors(converted, 0):
        converted.mkdir(parents=True)
        removal.callback(shutil.rmtree, converted, ignore_errors=True)
        model = _load_weights(folder, name, dtype, config, {"device_map": places, "offload_folder": converted})
        weakref.finalize(model, removal.pop_all().close)
    if model.device.type == "meta":
        raise ModelError(
            f"Not enough memory even for the embedding of {name}: {room_here()['cpu'] / 2**30:,.2f} GiB are available "
            "for weights. Close other programs or raise SWM_MEMORY."
        )
    return model.eval()


def _places(config: Any, name: str, dtype: str, spare: int) -> dict[str, Any] | None:
    if world_size() > 1:
        return None  # each process has its own device
    model = skeleton(config, name)
    precision = model.dtype if dtype == "auto" else getattr(torch, dtype)
    room = room_here()
    first = next(iter(room))
    room[first] = max(0, room[first] - spare)
    return device_map(model, list(find_decoder(model).layers), precision, room)


def _bytes_in_memory(stored: int, config: Any, dtype: str) -> int:
    """Size of the loaded weights in bytes; the config gives the dtype in which they are stored."""
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
            f"{name} needs a library that is not installed: {first_line(error)} Quantised models cannot be merged: use "
            "the bfloat16 or float32 version."
        ) from None
    except (*config_errors(), safetensors_error()) as error:
        if is_full_disk(error):
            raise ExperimentError(full_disk_message(home(), 0)) from None
        raise ModelError(
            f"Cannot load the weights of {name}: {first_line(error)} The files are damaged, incomplete or do not match "
            "the config. Copy or download them again."
        ) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"The weights of {name} are incomplete: the safetensors files lack {missing[0]} and {len(missing) - 1} "
            "more. Copy or download them again."
        )
    return cast(PreTrainedModel, model)
