"""A model as a folder that anybody's transformers loads; it appears whole, and only once it has been reloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from swm.errors import ExperimentError, ModelError, first_line
from swm.models.decoder import size_bytes
from swm.workspace.files import check_space, disk_errors, full_disk_message, is_full_disk, replaced_folder
from swm.workspace.machine import is_out_of_memory


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
        ModelError: if the files lack a weight of the saved config, or the reloaded model gives other logits.
    """
    folder, needed = Path(folder), size_bytes(model)
    check_space(folder, needed)
    with disk_errors(folder, needed), replaced_folder(folder) as new:
        try:
            if getattr(model, "generation_config", None) is not None:
                model.generation_config = generation_config(model.generation_config)
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
        except safetensors_error() as error:
            if is_full_disk(error):
                raise ExperimentError(full_disk_message(folder, needed)) from None
            raise
        check_complete(new) if check is None else check_reload(new, model, check)
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
        ModelError: if a weight is not in the files, or the difference is more than rounding.
    """
    reloaded = _loaded(folder, dtype=model.dtype).to(model.device).eval()  # type: ignore[arg-type]
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


def check_complete(folder: Path) -> None:
    """Raise ModelError unless the files hold each weight of the saved config, in its shape; none is read.

    transformers fills what it does not find with random numbers, and only warns of it.
    """
    _loaded(folder, device_map="meta")


def _loaded(folder: Path, **how: Any) -> PreTrainedModel:
    """The folder as anybody's transformers loads it, once nothing is missing, left over or of another shape."""
    config = AutoConfig.from_pretrained(folder)
    with quiet_transformers():
        try:
            found: Any = AutoModelForCausalLM.from_pretrained(folder, config=config, output_loading_info=True, **how)
        except RuntimeError as error:  # shapes
            if is_out_of_memory(error):
                raise
            shapes = "mismatched" in str(error)  # transformers names them in a report of its own alone
            reason = "a weight has another shape than the config says." if shapes else first_line(error)
            raise _not_as_saved(type(config).__name__, reason) from None
    model, info = found
    for kind, what in (("missing_keys", "is not in the files"), ("unexpected_keys", "is not in the model")):
        if names := sorted(info[kind]):
            raise _not_as_saved(type(model).__name__, f"{names[0]} {what}, and {len(names) - 1} more.")
    return cast(PreTrainedModel, model)


def _not_as_saved(what: str, reason: str) -> ModelError:
    return ModelError(
        f"The saved {what} would not load correctly: {reason} Its config cannot describe the layers that are left. "
        "Choose other windows, or another model."
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own reports and bars: what is wrong with a model is said by a message of ours."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def safetensors_error() -> type[Exception]:
    """The error class of safetensors, imported when it is needed."""
    from safetensors import SafetensorError

    return cast(type[Exception], SafetensorError)
