"""What several tests of planners start from."""

import torch

from swm.merging.apply import apply_plan
from swm.models.decoder import find_decoder
from swm.plan import MergePlan


def without(model, dropped, count):
    """The model with layers taken out of its list, for transformers' own loss."""
    small = apply_plan(model, MergePlan(count))
    decoder = find_decoder(small)
    kept = [layer for index, layer in enumerate(decoder.layers) if index not in dropped]
    setattr(decoder.parent, decoder.attribute, torch.nn.ModuleList(kept))
    small.config.num_hidden_layers = len(kept)
    return small


@torch.no_grad()
def own_loss(model, tokens):
    return float(model(input_ids=tokens, labels=tokens, use_cache=False).loss)
