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
    """Why the sample is too small, if independent layers could seem similar by chance; empty otherwise.

    Their debiased CKA has a standard deviation of sqrt(2) / n around 0 for n samples in a block, divided by the square
    root of the number of blocks.
    """
    noise = 2**0.5 / samples / blocks**0.5
    if noise <= NOISE_ALLOWED:
        return ""
    return (
        f"{samples * blocks:.0f} samples are few: the CKA of independent layers would scatter by {noise:.2f} around 0. "
        f"Use at least {math.ceil(2**0.5 / NOISE_ALLOWED)} samples."
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
