"""1 - angle / pi between a token's states in two layers, averaged over tokens.

Source: the distance of The Unreasonable Ineffectiveness of the Deeper Layers, arXiv:2403.17887, as a similarity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from swm.registry import METRICS, Metric

if TYPE_CHECKING:
    from torch import Tensor


def products() -> Callable[[Tensor], Tensor]:
    """1 - angle / pi of all pairs of layers, summed over tokens."""
    from swm.similarity.gram import token_cosines

    return lambda states: (1 - token_cosines(states).clamp(-1, 1).acos() / math.pi).sum(0)


METRICS.register(
    Metric(
        "angular",
        "Angular",
        "1 - angle / pi between a token's states in both layers, averaged over tokens",
        products,
        mean=True,
    )
)
