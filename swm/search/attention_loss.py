"""Which layers' attention a model can best do without."""

from __future__ import annotations

import heapq
import math

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swm.errors import ModelError
from swm.merging.merged_layer import MergedLayer
from swm.models.decoder import find_decoder
from swm.progress import Progress, no_progress
from swm.search.plan_loss import PlanLoss

OUTPUT = "self_attn.o_proj."  # what an attention adds to the residual stream goes through it


def without_attention(layer: torch.nn.Module, number: int) -> MergedLayer:
    """A layer whose attention adds nothing.

    Raises:
        ModelError: if its attention has no output projection of the usual name.
    """
    silent = {name: torch.zeros_like(weight) for name, weight in layer.named_parameters() if name.startswith(OUTPUT)}
    if not silent:
        raise ModelError("Attention can only be left out of layers whose attention ends in a projection o_proj.")
    return MergedLayer(number, silent)


def least_needed_attention(
    model: PreTrainedModel, tokens: Tensor, count: int, progress: Progress = no_progress
) -> tuple[list[int], list[float]]:
    """The layers whose attention costs least, and the loss on the text without the first, the first two, ...

    One layer after the other is chosen by the loss without its attention and that of those before it. A layer's cost is
    computed again only while it is the lowest known, which finds the same layers as trying all each time unless an
    attention becomes less needed once another is gone.

    Args:
        tokens: ids, shape (texts, length).
        count: of layers. The first layer keeps its attention: llama.cpp reads the size of a head from it.

    Returns:
        Layers in the order in which they were chosen, and losses in nats per token, the first that of the whole model.
    """
    layers = find_decoder(model).layers
    loss = PlanLoss(model, tokens)
    gone: list[int] = []
    losses = [loss.of([MergedLayer(len(layers) - 1)], len(layers) - 1)]
    known = [(-math.inf, -1, layer) for layer in range(1, len(layers))]  # cost, how many were gone then, layer
    while len(gone) < count:
        cost, when, layer = heapq.heappop(known)
        if when == len(gone):
            gone.append(layer)
            losses.append(losses[-1] + cost)
            continue
        progress(len(gone), count, f"attention of layer {layer}")
        silent = {layer, *gone}
        lowest = min(silent)
        made = (
            without_attention(layers[number], number) if number in silent else MergedLayer(number)
            for number in range(lowest, len(layers))
        )
        heapq.heappush(known, (loss.of(made, lowest) - losses[-1], len(gone), layer))
    return gone, losses
