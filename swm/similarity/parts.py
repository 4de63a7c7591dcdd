"""How much a layer's attention and its MLP each change the hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from swm.models.offload import weights_of
from swm.models.replay import Replay

MLPS = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "fc2")  # what families call the part after the attention
PART_TOKENS = 1024  # in one forward pass


def parts_influence(model: PreTrainedModel, tokens: Tensor, skip_tokens: int = 0) -> tuple[Tensor, Tensor] | None:
    """Influence of each layer's attention (or other mixer) and of its MLP.

    As block influence (1 - mean cosine), from the layer's input to the state without the MLP, and from there to the
    output. The state without the MLP is the layer's output with all weights of the MLP at 0, so a norm on the MLP's
    result, or an MLP beside the attention, needs no special case.

    Args:
        model: causal LM in eval mode; not changed.
        tokens: ids, shape (texts, length), int64, no padding.
        skip_tokens: number of first tokens of each text to leave out.

    Returns:
        Two of shape (layers,), float64; None if a layer has no part with a name in MLPS.
    """
    replay = Replay(model, tokens, keep_every=4, part=max(1, PART_TOKENS // tokens.shape[1]))
    names = [_mlp_weights(layer) for layer in replay.layers]
    if not all(names):
        return None
    rows = torch.arange(len(tokens)).split(max(1, PART_TOKENS // tokens.shape[1]))
    sums = torch.zeros(2, len(names), dtype=torch.float64)
    for index, layer in enumerate(replay.layers):
        weights = weights_of(layer)
        zeros = {name: torch.zeros_like(weights[name]) for name in names[index]}
        for part in rows:
            entry = replay.input_of(index, part)
            output = replay.input_of(index + 1, part) if index + 1 < len(names) else replay.run(entry, index)
            states = [entry, replay.run(entry, index, zeros), output]
            unit = [F.normalize(state[:, skip_tokens:].float(), dim=-1) for state in states]
            for step in range(2):
                sums[step, index] += (1 - (unit[step] * unit[step + 1]).sum(-1).double()).sum().cpu()
    attention, mlp = sums / (len(tokens) * (tokens.shape[1] - skip_tokens))
    return attention, mlp


def _mlp_weights(layer: nn.Module) -> list[str]:
    """Names of the parameters of the layer's MLP, relative to the layer."""
    prefixes = tuple(f"{name}." for name, _ in layer.named_children() if name in MLPS)
    return [name for name in weights_of(layer) if name.startswith(prefixes)] if prefixes else []
