"""Gradient of a model's loss on text, for importances that need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def loss_gradients(
    model: PreTrainedModel,
    tokens: Tensor,
    weights: Sequence[nn.Parameter],
    on_text: Callable[[int, int], None] = lambda done, total: None,
) -> list[Tensor]:
    """Gradient of the mean next-token loss by each of the weights; zeros where it does not depend on one.

    Args:
        model: not changed.
        tokens: ids, shape (texts, length), int64, no padding.

    Memory: twice the weights.
    """
    needed = [weight.requires_grad for weight in weights]
    sums = [torch.zeros_like(weight) for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            for done, text in enumerate(tokens.to(model.device).split(1), 1):
                loss = model(input_ids=text, labels=text, use_cache=False).loss / len(tokens)
                for total, gradient in zip(sums, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                    if gradient is not None:  # an expert that no token was sent to
                        total.add_(gradient)
                on_text(done, len(tokens))
    finally:
        for weight, before in zip(weights, needed, strict=True):
            weight.requires_grad_(before)
    return sums
