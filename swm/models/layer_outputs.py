"""The output of every layer in one forward pass, through hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swm.errors import NotFiniteError, TextError
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
        Needs layers * texts * length * width * bytes of the dtype.

    Source: hooks, not `output_hidden_states`: there transformers (5.24) has already applied the final norm to the last
    entry.
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


def run_decoder(model: PreTrainedModel, tokens: Tensor, **more: Tensor) -> None:
    """One forward pass without the output head: its logits are not needed here."""
    model.base_model(input_ids=tokens, use_cache=False, **more)


def hidden_of(result: Any) -> Tensor:
    """The hidden state in a layer's result: the result itself, or in some families the first item of a sequence."""
    return result[0] if isinstance(result, (tuple, list)) else result


def check_tokens(tokens: Tensor) -> None:
    """Raise TextError unless tokens have shape (texts, length) and none of the two is 0."""
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise TextError(
            f"Tokens have shape {tuple(tokens.shape)}; expected one non-empty row per text. Choose another text."
        )


def split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """The hidden state that a layer was called with, and the other arguments."""
    if args:
        return args[0], (args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), ((), rest)


def check_finite(hidden: Tensor, layer: int) -> None:
    """Raise NotFiniteError if a layer's output contains NaN or infinity."""
    if not torch.isfinite(hidden).all():
        raise NotFiniteError(
            f"The output of layer {layer} is not finite (NaN or infinity) in "
            f"{str(hidden.dtype).removeprefix('torch.')}. Check the model's weights; if they are correct, create the "
            "experiment with --dtype float32."
        )


def layer_hooks(layer: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> list[Any]:
    """Registers hooks before and after a layer's forward pass; gives their handles."""
    return [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]
