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
            raise TextError("One token has nothing to be compared with. Use longer or more texts.")
        return products_of_pairs(centred(linear_gram(states))) * n / (n - 1) ** 2

    return of_block


def warning(samples: float, blocks: int, width: int) -> str:
    """Whether independent layers seem similar by the size of the sample alone: for white data of width p and n samples
    in a block, biased CKA is about p / (p + n)."""
    bias = width / (width + samples)
    if bias <= BIAS_ALLOWED:
        return ""
    return (
        f"Independent layers would seem {bias:.2f} similar: biased CKA sees {samples:.0f} samples at a time of width "
        f"{width:,}; it needs {width * (1 / BIAS_ALLOWED - 1):,.0f}. Use debiased CKA instead."
    )


METRICS.register(
    Metric(
        "cka-biased",
        "CKA, biased",
        "linear CKA as first published: close to 1 whenever samples are fewer than the width",
        products,
        warning=warning,
    )
)
