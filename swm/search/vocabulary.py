"""A part of a large vocabulary that stands for all of it, so that comparing many models costs less.

With 262,144 tokens, the logits of a small model cost more than all its layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LIKELY, DRAWN = 8192, 8192  # tokens: the likeliest ones, and those drawn from all others
LARGE = 4 * (LIKELY + DRAWN)  # tokens from which on a vocabulary is sampled


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

        Args:
            probabilities: mean probability of each token in the text, shape (vocabulary,).
            text: token ids whose losses will be asked for, of any shape; they are among the likeliest.
        """
        rank = probabilities.float().clone()
        rank[text.flatten()] = torch.inf
        order = rank.argsort(descending=True)
        likely = max(likely, int(rank.isinf().sum()))
        rest = order[likely:].cpu()
        drawn = min(drawn, len(rest))
        chosen = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))[:drawn]].to(order.device)
        weights = torch.zeros(len(order) - len(rest) + drawn, device=order.device)
        if drawn:
            weights[-drawn:] = math.log(len(rest) / drawn)
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


def mean_probabilities(logits: Tensor) -> Tensor:
    """The mean probability of each token, shape (vocabulary,), for logits of shape (tokens, vocabulary)."""
    return F.softmax(logits.float(), dim=1).mean(0)
