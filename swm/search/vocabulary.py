"""A part of a large vocabulary that stands for all of it, so that comparing many models costs less.

With 262,144 tokens, the logits of a small model cost more than all its layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from swm.settings import LARGE_VOCABULARY, VOCABULARY_SAMPLE

LIKELY = VOCABULARY_SAMPLE // 2  # tokens of the sample that are the likeliest ones
DRAWN = VOCABULARY_SAMPLE - LIKELY  # those drawn from all others
PART_TOKENS = 1024  # in one forward pass


@dataclass(frozen=True)
class VocabularySample:
    """Tokens of a vocabulary: the likeliest ones of a text, and some drawn at random that stand for all others.

    Attributes:
        tokens: their ids, shape (sampled,), int64.
        log_weight: of each, the logarithm of the number of tokens that it stands for.
    """

    tokens: Tensor
    log_weight: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, text: Tensor, likely: int = LIKELY, drawn: int = DRAWN) -> VocabularySample:
        """The sample for a text.

        Every token of the vocabulary has its place in one random order, so that rounding changes few tokens.

        Args:
            probabilities: mean probability of each token in the text, shape (vocabulary,).
            text: token ids whose losses will be asked for, of any shape; they are among the likeliest.
        """
        rank = probabilities.float().clone()
        rank[text.flatten()] = torch.inf
        order = rank.argsort(descending=True)
        likely = max(likely, int(rank.isinf().sum()))
        places = torch.rand(len(rank), generator=torch.Generator().manual_seed(0)).to(rank.device)
        rest = order[likely:]
        chosen = rest[places[rest].argsort()[:drawn]]
        weights = torch.zeros(len(order) - len(rest) + len(chosen), device=rank.device)
        if len(chosen):
            weights[-len(chosen) :] = math.log(len(rest) / len(chosen))
        return cls(torch.cat([order[:likely], chosen]), weights)

    def losses(self, logits: Tensor, text: Tensor) -> Tensor:
        """The loss of each token of a text, in nats, estimated.

        Args:
            logits: of the sampled tokens alone, shape (tokens, sampled), float32.
            text: the right token ids, shape (tokens,).
        """
        ids, order = self.tokens.sort()
        places = order[torch.searchsorted(ids, text)]
        return torch.logsumexp(logits + self.log_weight, 1) - logits.gather(1, places[:, None])[:, 0]


@torch.inference_mode()
def sample_for(model: PreTrainedModel, tokens: Tensor) -> VocabularySample | None:
    """The sample of the model's vocabulary for a text; None if it is small, or the head is no plain linear map.

    Args:
        tokens: ids, shape (texts, length), int64, no padding.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.out_features < LARGE_VOCABULARY or head.weight.is_meta:
        return None
    tokens = tokens.to(model.device)
    total = torch.zeros(head.out_features, device=model.device)
    for rows in tokens.split(max(1, PART_TOKENS // tokens.shape[1])):
        total += model(rows, use_cache=False).logits[:, :-1].float().flatten(0, 1).softmax(1).sum(0)
    return VocabularySample.of(total, tokens[:, 1:])
