"""The output of every layer in one forward pass, by hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swm.errors import ModelError, TextError
from swm.models.decoder import find_decoder
from swm.models.hooks import hooked

Call = tuple[tuple[Any, ...], dict[str, Any]]


@torch.inference_mode()
def layer_outputs(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Input of the first layer, and output of each layer, for every token.

    Args:
        model: causal LM in eval mode; not changed.
        tokens: ids, shape (texts, length), int64, no padding.

    Returns:
        Input, shape (texts, length, width), and outputs, shape (layers, texts, length, width), in the model's dtype.
        Needs layers * texts * length * width numbers of memory.

    Source: hooks, not `output_hidden_states`: there transformers (5.24) has applied the final norm to the last entry.
    """
    check_tokens(tokens)
    first: list[Tensor] = []
    outputs: list[Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not first:
            first.append(split_call(args, kwargs)[0])

    def after(module: nn.Module, args: Any, result: Any) -> None:
        hidden = hidden_of(result)
        check_finite(hidden, len(outputs))
        outputs.append(hidden.to(first[0].device))

    with hooked([h for layer in find_decoder(model).layers for h in layer_hooks(layer, before, after)]):
        run_decoder(model, tokens.to(model.device))
    return first[0], torch.stack(outputs)


def run_decoder(model: PreTrainedModel, tokens: Tensor) -> None:
    """One forward pass without the output head, whose logits nobody here needs."""
    model.base_model(input_ids=tokens, use_cache=False)


def hidden_of(result: Any) -> Tensor:
    """The hidden state in a layer's result: the result itself, or the first of a tuple or list (some families)."""
    return result[0] if isinstance(result, (tuple, list)) else result


def check_tokens(tokens: Tensor) -> None:
    """Raise TextError unless tokens have one row for each text."""
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise TextError(f"Tokens of shape {tuple(tokens.shape)}: one row for each text is needed. Choose another text.")


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """The hidden state that a layer was called with, and the rest of the call."""
    if args:
        return args[0], (args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), ((), rest)


def check_finite(hidden: Tensor, layer: int) -> None:
    """Raise ModelError if a layer's output has numbers that are not finite."""
    if not torch.isfinite(hidden).all():
        raise ModelError(
            f"Layer {layer} gives numbers that are not finite in {str(hidden.dtype).removeprefix('torch.')}. "
            "Check the model's weights; if they are sound, create the experiment with --dtype float32."
        )


def layer_hooks(layer: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> list[Any]:
    """Hooks before and after a layer's forward pass."""
    return [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]
