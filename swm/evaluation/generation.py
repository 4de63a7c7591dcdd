"""Greedy generation token by token, and whether a model can generate at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swm.errors import ModelError, NoCacheError, first_line
from swm.models.save import quiet_transformers
from swm.workspace.machine import is_out_of_memory


def generated_tokens(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> Iterator[Tensor]:
    """Greedy continuation of a prompt, one token at a time, shape (1, 1) each; with KV cache, never stopping early."""
    result: Any = model(prompt.to(model.device), use_cache=True, logits_to_keep=1)
    for step in range(new_tokens):
        token = result.logits[:, -1:].argmax(-1)
        yield token
        if step + 1 < new_tokens:
            kept = _kept(result)
            assert kept is not None  # see check_keeps_cache
            result = model(token, use_cache=True, logits_to_keep=1, **{kept: result[kept]})


def keeps_cache(model: PreTrainedModel, prompt: Tensor) -> bool:
    """Whether the model gives back what it has read, so that the next token needs no second reading."""
    with torch.inference_mode():
        return _kept(model(prompt.to(model.device), use_cache=True)) is not None


@torch.inference_mode()
def check_generates(model: PreTrainedModel, prompt: Tensor) -> None:
    """Raise ModelError if transformers cannot generate with the model, as when no layer is left that has attention."""
    try:
        with quiet_transformers():
            model.generate(prompt.to(model.device), max_new_tokens=2, do_sample=False)  # type: ignore[operator]
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"The {type(model).__name__} cannot generate text: {first_line(error)} Of layers of several kinds, "
            "keep one of each kind."
        ) from None


def check_keeps_cache(model: PreTrainedModel, prompt: Tensor) -> None:
    """Raise ModelError if the model cannot generate token by token from what it has kept."""
    if not keeps_cache(model, prompt):
        raise NoCacheError(
            f"{type(model).__name__} returns no cache (keys and values, or a state), so its generation speed cannot be "
            "measured. Compare size and scores only."
        )


def _kept(result: Any) -> str | None:
    """By what name the result has the cache."""
    names = ("cache", "past_key_values", "cache_params")
    return next((name for name in names if name in result and result[name] is not None), None)


def wait_for_device(model: PreTrainedModel) -> None:
    """Wait until the model's GPU has finished; at once on a CPU."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
