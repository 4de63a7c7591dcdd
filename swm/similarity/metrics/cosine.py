"""Mean cosine between a token's states in two layers; not invariant to rotation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swm.registry import METRICS, Metric

if TYPE_CHECKING:
    from torch import Tensor


def products() -> Callable[[Tensor], Tensor]:
    """Cosines of all pairs of layers, summed over tokens."""
    from swm.similarity.gram import token_cosines

    return lambda states: token_cosines(states).sum(0)


METRICS.register(Metric("cosine", "Cosine", "mean cosine between a token's states in both layers", products, mean=True))
