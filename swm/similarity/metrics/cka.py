"""Debiased linear CKA.

Source: Kornblith et al. 2019, arXiv:1905.00414; the unbiased estimate by Song et al. 2012 (JMLR 13), summed over
batches as in Nguyen et al. 2020, arXiv:2010.15327.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from swm.registry import METRICS, Metric

if TYPE_CHECKING:
    from torch import Tensor

NOISE_ALLOWED = 0.05


def products() -> Callable[[Tensor], Tensor]:
    """Unbiased HSIC of all pairs of layers."""
    from swm.similarity.gram import debiased, linear_gram, u_centred

    return lambda states: debiased(u_centred(linear_gram(states)))


def warning(samples: float, blocks: int, width: int) -> str:
    """Whether independent layers could seem similar by chance: debiased CKA scatters about 0 by sqrt(2) / n for n
    samples in a block, less by the root of the number of blocks."""
    noise = 2**0.5 / samples / blocks**0.5
    if noise <= NOISE_ALLOWED:
        return ""
    return (
        f"{samples * blocks:.0f} samples are few: independent layers would scatter by {noise:.2f} about 0. "
        f"Use {math.ceil(2**0.5 / NOISE_ALLOWED)} samples or more."
    )


METRICS.register(
    Metric(
        "cka",
        "CKA",
        "debiased linear CKA: ignores shift, rotation and scale; 0 for independent layers (default)",
        products,
        warning=warning,
    )
)
