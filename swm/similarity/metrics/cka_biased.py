"""Linear CKA as first published (Kornblith et al. 2019, arXiv:1905.00414): biased towards 1 for few samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swm.registry import METRICS, Metric

if TYPE_CHECKING:
    from torch import Tensor

BIAS_ALLOWED = 0.1


def products() -> Callable[[Tensor], Tensor]:
    """n times the HSIC as first published, <HKH, HLH> / (n - 1)^2, of all pairs of layers."""
    from swm.errors import TextError
    from swm.similarity.gram import centred, linear_gram, products_of_pairs

    def of_block(states: Tensor) -> Tensor:
        n = states.shape[1]
        if n < 2:
            raise TextError("CKA needs at least 2 tokens (got 1). Use longer or more texts.")
        return products_of_pairs(centred(linear_gram(states))) * n / (n - 1) ** 2

    return of_block


def warning(samples: float, blocks: int, width: int) -> str:
    """Why the sample is too small, if it makes independent layers seem similar; empty otherwise.

    For white data of width p and n samples in a block, biased CKA is about p / (p + n).
    """
    bias = width / (width + samples)
    if bias <= BIAS_ALLOWED:
        return ""
    return (
        f"Even independent layers would have a biased CKA of {bias:.2f}: a block has {samples:.0f} samples at hidden "
        f"size {width:,}; it needs {width * (1 / BIAS_ALLOWED - 1):,.0f}. Use debiased CKA instead."
    )


METRICS.register(
    Metric(
        "cka-biased",
        "CKA, biased",
        "linear CKA as first published: close to 1 whenever there are fewer samples than the hidden size",
        products,
        warning=warning,
    )
)
