"""Greedy generation token by token, and whether a model can generate at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swm.disk.machine import is_out_of_memory
from swm.errors import ModelError, NoCacheError, first_line
from swm.models.save import quiet_transformers

# What the code of a model raises if its config does not fit together.
OF_MODELS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
FEW_TOKENS = 4


@torch.inference_mode()
def check_reads(model: PreTrainedModel) -> None:
    """Raise ModelError if the model's own code fails on a few tokens; for a model in memory."""
    size = int(model.config.get_text_config().vocab_size)
    try:
        model((torch.arange(FEW_TOKENS)[None] % size).to(model.device), use_cache=False)
    except OF_MODELS as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{type(model).__name__} cannot read text: {first_line(error)} Check the model's config.json, or choose "
            "another model."
        ) from None


def generated_tokens(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> Iterator[Tensor]:
    """Greedy continuation of a prompt, one token at a time, shape (rows, 1); uses the KV cache, never stops early.

    Raises:
        NoCacheError: if the model returns no cache.
    """
    result: Any = model(prompt.to(model.device), use_cache=True, logits_to_keep=1)
    for step in range(new_tokens):
        token = result.logits[:, -1:].argmax(-1)
        yield token
        if step + 1 < new_tokens:
            cache = _cache_name(result)
            if cache is None:
                raise NoCacheError(f"The {type(model).__name__} returns no cache (keys and values, or a state).")
            result = model(token, use_cache=True, logits_to_keep=1, **{cache: result[cache]})


def keeps_cache(model: PreTrainedModel, prompt: Tensor) -> bool:
    """Whether the model returns a cache, so that the next token does not need the whole prompt again."""
    with torch.inference_mode():
        return _cache_name(model(prompt.to(model.device), use_cache=True)) is not None


def check_generates(model: PreTrainedModel, prompt: Tensor, original: PreTrainedModel | None = None) -> None:
    """Raise ModelError if transformers cannot generate with the model, for example with no attention layer left.

    Args:
        original: that the model was merged from; if that cannot generate either, the message says so.
    """
    if reason := generation_error(model, prompt):
        cure = "If the model mixes several types of layers, keep at least one of each type."
        if original is not None and generation_error(original, prompt):
            cure = "Nor can the original, before anything was merged: check its config.json, or choose another model."
        raise ModelError(f"The {type(model).__name__} cannot generate text: {reason} {cure}")


@torch.inference_mode()
def generation_error(model: PreTrainedModel, prompt: Tensor) -> str:
    """Why transformers cannot generate with the model; empty if it can."""
    try:
        with quiet_transformers():
            model.generate(prompt.to(model.device), max_new_tokens=2, do_sample=False)  # type: ignore[operator]
    except OF_MODELS as error:
        if is_out_of_memory(error):
            raise
        return first_line(error)
    return ""


def check_keeps_cache(model: PreTrainedModel, prompt: Tensor) -> None:
    """Raise NoCacheError if the model returns no cache to generate from."""
    if not keeps_cache(model, prompt):
        raise NoCacheError(
            f"Cannot measure the generation speed of {type(model).__name__}: it returns no cache (keys and values, or "
            "a state). Compare size and scores only."
        )


def _cache_name(result: Any) -> str | None:
    """The name under which the result holds the cache; None if it has none."""
    names = ("cache", "past_key_values", "cache_params")
    return next((name for name in names if name in result and result[name] is not None), None)


def wait_for_device(model: PreTrainedModel) -> None:
    """Wait until the model's GPU has finished its work; does nothing on a CPU."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
