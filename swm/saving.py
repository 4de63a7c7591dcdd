"""A model as a folder that anybody's transformers loads; it appears whole, and only once it has been reloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from swm.decoder import size_bytes
from swm.errors import ExperimentError, ModelError
from swm.files import check_space, disk_errors, full_disk_message, is_full_disk, replaced_folder


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
        except safetensors_error() as error:
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


def safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return cast(type[Exception], SafetensorError)
