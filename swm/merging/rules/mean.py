"""The average of the window's layers: the paper's "Average" (arXiv:2502.19159, ablation of merge rules)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swm.registry import MERGE_RULES, MergeRule

if TYPE_CHECKING:
    from torch import Tensor


def combine(weights: Sequence[Tensor]) -> Tensor:
    """The mean, as a running average so that no sum overflows."""
    average = weights[0].clone()
    for count, weight in enumerate(weights[1:], 2):
        average += (weight - average) / count
    return average


MERGE_RULES.register(MergeRule("mean", "average (mean)", "the average of the window's layers", combine))
