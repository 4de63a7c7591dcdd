"""Save a model as a folder that plain transformers loads; it appears complete, and only after a reload check."""

from __future__ import annotations

import copy
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from swm.disk.files import check_space, disk_errors, full_disk_message, is_full_disk, replaced_folder
from swm.disk.machine import is_out_of_memory
from swm.errors import ExperimentError, ModelError, first_line
from swm.models.decoder import size_bytes

SHARD_BYTES = 5 * 10**9  # of weights in one file: what works on one file at a time needs as much memory


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    check: Tensor | None = None,
    on_written: Callable[[Path], None] | None = None,
) -> None:
    """Write a folder that plain `AutoModelForCausalLM.from_pretrained` loads; it appears complete or not at all.

    Args:
        check: ids, shape (texts, length): the folder appears only if the reloaded model reproduces the logits for them.
        on_written: called with the finished folder just before it is moved into place.

    Raises:
        ExperimentError: if the disk is full or read-only; leaves nothing behind.
        ModelError: if the files lack a weight of the saved config, or the reloaded model gives different logits.
    """
    folder, needed = Path(folder), size_bytes(model)
    check_space(folder, needed)
    with disk_errors(folder, needed), replaced_folder(folder) as new:
        try:
            if getattr(model, "generation_config", None) is not None:
                model.generation_config = generation_config(model.generation_config)
            model.save_pretrained(new, max_shard_size=SHARD_BYTES)
            tokenizer.save_pretrained(new)
            usual = stat.S_IMODE((new / "config.json").stat().st_mode)
            for file in new.glob("*.safetensors"):  # written for its owner alone, whatever umask says
                file.chmod(usual)
        except safetensors_error() as error:
            if is_full_disk(error):
                raise ExperimentError(full_disk_message(folder, needed)) from None
            raise
        check_complete(new) if check is None else check_reload(new, model, check)
        if on_written:
            on_written(new)


def generation_config(config: GenerationConfig) -> GenerationConfig:
    """A copy that can be saved: older models set a temperature without `do_sample`, so that is added."""
    config = copy.deepcopy(config)
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
    return config


@torch.inference_mode()
def check_reload(folder: Path, model: PreTrainedModel, tokens: Tensor) -> float:
    """Reload the saved folder with plain transformers and compare its logits with the model in memory.

    Args:
        tokens: ids, shape (texts, length); the first text is used.

    Returns:
        Largest difference between two logits, relative to the largest logit.

    Raises:
        ModelError: if the files lack a weight, or the difference is larger than rounding.
    """
    reloaded = _loaded(folder, dtype=model.dtype).to(model.device).eval()  # type: ignore[arg-type]
    ids = tokens[:1].to(model.device)
    expected, actual = model(ids, use_cache=False).logits.float(), reloaded(ids, use_cache=False).logits.float()
    difference = float((expected - actual).abs().max() / expected.abs().max())
    allowed = 1e-4 if model.dtype == torch.float32 else 2e-2
    if not difference <= allowed:
        raise ModelError(
            f"The saved {type(model).__name__} gives different logits than the model in memory (relative difference "
            f"{difference:.2g}, allowed {allowed:g}). Its config does not store everything that its layers depend on, "
            "so this architecture cannot be merged safely. Choose another model."
        )
    return difference


def check_complete(folder: Path) -> None:
    """Raise ModelError unless the files hold every weight of the saved config in its shape; reads no weight.

    transformers fills missing weights with random numbers and only warns about it.
    """
    _loaded(folder, device_map="meta")


def _loaded(folder: Path, **options: Any) -> PreTrainedModel:
    """The folder loaded with plain transformers; refused if a weight is missing, left over or of another shape."""
    config = AutoConfig.from_pretrained(folder)
    with quiet_transformers():
        try:
            result: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=config, output_loading_info=True, **options
            )
        except RuntimeError as error:  # shapes
            if is_out_of_memory(error):
                raise
            shapes = "mismatched" in str(error)  # transformers names the weights only in its own report
            reason = "a weight's shape does not match the config." if shapes else first_line(error)
            raise _not_as_saved(type(config).__name__, reason) from None
    model, info = result
    for kind, problem in (("missing_keys", "is not in the files"), ("unexpected_keys", "is not in the model")):
        if names := sorted(info[kind]):
            raise _not_as_saved(type(model).__name__, f"{names[0]} {problem}, and {len(names) - 1} more.")
    return cast(PreTrainedModel, model)


def _not_as_saved(class_name: str, reason: str) -> ModelError:
    return ModelError(
        f"The saved {class_name} would not load correctly: {reason} Its config cannot describe the layers that are "
        "left. Choose other windows or another model."
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turns off transformers' own reports and progress bars: our messages say what is wrong with a model."""
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
    """The exception class of safetensors, imported on first use."""
    from safetensors import SafetensorError

    return cast(type[Exception], SafetensorError)
