"""Debiased CKA with a Gaussian kernel (bandwidth: half the median distance): emphasises near neighbours.

Source: Kornblith et al. 2019, arXiv:1905.00414, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swm.registry import METRICS, Metric
from swm.similarity.metrics.cka import warning

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 0.5  # bandwidth of the kernel, in median distances


def products() -> Callable[[Tensor], Tensor]:
    """Unbiased HSIC of all pairs of layers; the first block sets the bandwidth of each layer's kernel."""
    import torch

    from swm.similarity.gram import check_samples, debiased, median_distance, squared_distances, u_centred

    widths: list[Tensor] = []

    def of_block(states: Tensor) -> Tensor:
        check_samples(states.shape[1])
        distances = squared_distances(states)
        if not widths:
            widths.append(median_distance(distances))
        sigma = WIDTH * widths[0][:, None, None]
        return debiased(u_centred(torch.exp(-distances / (2 * sigma**2))))

    return of_block


METRICS.register(
    Metric(
        "cka-rbf",
        "CKA, Gaussian kernel",
        "debiased CKA with a Gaussian kernel (bandwidth: half the median distance): emphasises near neighbours",
        products,
        warning=warning,
        first_block_counts=True,
    )
)
