"""What the released code of Sliding-Window Merging computes: the last layer's projections, the first layer's norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swm.registry import MERGE_RULES, MergeRule

if TYPE_CHECKING:
    from torch import Tensor


def combine(weights: Sequence[Tensor]) -> Tensor:
    """The parameter of the highest layer."""
    return weights[-1]


MERGE_RULES.register(
    MergeRule(
        "replace",
        "released code (replace)",
        "the last layer's projections with the first layer's norms: what the released code computes",
        combine,
    )
)
