"""Perplexity of texts, with its interval."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from swm.errors import ModelError, TextError
from swm.evaluation.paired import mean_interval
from swm.models.processes import gathered, own_part, world_size
from swm.progress import Progress


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel, tokens: Tensor, batch: int = 8, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Perplexity of independent texts (no context carried over between them).

    Args:
        tokens: ids, shape (texts, length), int64, no padding; the first token of a text is given, not predicted.

    Returns:
        `value`; `low` and `high`, its 95 % interval over texts (Student's, of the mean loss of a text), which a single
        text does not have;
        `texts`, `length_tokens`, `predicted_tokens`; `losses`, the mean loss of each text in nats per token, so that
        models can be compared text by text.

    Raises:
        TextError: if the texts have fewer than two tokens. ModelError: if the loss is not finite.
    """
    if tokens.shape[1] < 2:
        raise TextError("Perplexity needs texts of at least 2 tokens (got 1). Choose longer texts.")
    losses: list[float] = []
    for part in own_part(list(tokens.split(batch))):
        ids = part.to(model.device)
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        losses += loss.view(len(part), -1).mean(1, dtype=torch.float64).tolist()
        if not math.isfinite(losses[-1]):
            break
        if on_progress:
            on_progress(len(losses) * world_size(), len(tokens), "perplexity")
    losses = gathered(losses)
    if broken := [loss for loss in losses if not math.isfinite(loss)]:
        raise ModelError(
            f"The model's loss is {broken[0]} in {str(model.dtype).removeprefix('torch.')}: it overflows in this "
            "precision, or its weights are damaged. Merge other windows, or create the experiment with --dtype float32."
        )
    ends = mean_interval(losses) or {"value": losses[0]}
    return {
        # Capped at e^50, where the model is broken anyway: JSON has no infinity.
        **{name: math.exp(min(loss, 50.0)) for name, loss in ends.items()},
        "texts": len(losses),
        "length_tokens": tokens.shape[1],
        "predicted_tokens": len(losses) * (tokens.shape[1] - 1),
        "losses": [round(loss, 6) for loss in losses],
    }
