"""Gradients of a model's loss on text, for importance scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swm.errors import ModelError


def loss_gradients(
    model: PreTrainedModel,
    tokens: Tensor,
    weights: Sequence[nn.Parameter],
    on_text: Callable[[int, int], None] = lambda done, total: None,
) -> list[Tensor]:
    """Gradient of the mean next-token loss with respect to each weight, float32; zero where the loss ignores it.

    Args:
        model: not changed.
        tokens: ids, shape (texts, length), int64, no padding.

    Raises:
        ModelError: if a gradient is not finite.

    Memory: twice the weights, half of it in float32.
    """
    required_before = [weight.requires_grad for weight in weights]
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            for done, text in enumerate(tokens.to(model.device).split(1), 1):
                loss = model(input_ids=text, labels=text, use_cache=False).loss
                gradients = torch.autograd.grad(loss, weights, materialize_grads=True)  # an expert may get no token
                for total, gradient in zip(sums, gradients, strict=True):
                    total.add_(gradient)
                on_text(done, len(tokens))
    finally:
        for weight, required in zip(weights, required_before, strict=True):
            weight.requires_grad_(required)
    for total in sums:
        total.div_(len(tokens))
    if not all(bool(total.isfinite().all()) for total in sums):
        raise ModelError(
            f"Gradients overflow in {str(model.dtype).removeprefix('torch.')}. "
            "Create the experiment with --dtype float32."
        )
    return sums
