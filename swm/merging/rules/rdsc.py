"""The formula in the paper: W_l + sum over the layers k above l of (W_k - W_l).

Source: Sliding-Window Merging, arXiv:2502.19159, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swm.registry import MERGE_RULES, MergeRule

if TYPE_CHECKING:
    from torch import Tensor


def combine(weights: Sequence[Tensor]) -> Tensor:
    """The sum of the n - 1 upper layers minus (n - 2) times the lowest: the paper's formula, rearranged."""
    lowest, *above = weights
    if len(above) == 1:
        return above[0]
    total = above[0].clone()
    for weight in above[1:]:
        total += weight
    return total.sub_(lowest, alpha=len(above) - 1)


MERGE_RULES.register(
    MergeRule(
        "rdsc",
        "paper formula (rdsc)",
        "the formula in the paper: the first layer plus the differences of all later layers from it",
        combine,
    )
)
