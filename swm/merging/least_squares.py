"""Ridge regression from sums over tokens, with the ridge that does best on text apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HELD_OUT = 8  # one part in this many is held out to choose the ridge
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # relative to the mean square of the features
DEFAULT_RIDGE = 0.1  # with too little text to choose one
Sums = tuple[Tensor, Tensor]
"""X'X, shape (in, in), and X'E, shape (in, out), in float64."""


def added(sums: Sums | None, features: Tensor, residual: Tensor) -> Sums:
    """The sums with those of some more rows, shapes (rows, in) and (rows, out); changes `sums` in place."""
    gram, cross = features.T @ features, features.T @ residual
    return (gram.double(), cross.double()) if sums is None else (sums[0].add_(gram), sums[1].add_(cross))


def best_ridge(fitted: Sums, held_out: Sums | None, ridges: Sequence[float] = RIDGES) -> float:
    """The ridge whose solution does best on the sums of the held-out text; the default one without such text."""
    if held_out is None:
        return DEFAULT_RIDGE
    return min(ridges, key=lambda ridge: error_change(ridge_solution(*fitted, ridge), held_out))


def error_change(change: Tensor, sums: Sums) -> float:
    """The squared error with a change of the linear map, shape (in, out), minus that without it."""
    gram, cross = sums
    return float((change * (gram @ change)).sum() - 2 * (change * cross).sum())


def ridge_solution(gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """The change of the linear map, shape (in, out), in float64.

    Args:
        ridge: relative to the mean of the gram matrix's diagonal.

    Memory: the gram matrix twice.
    """
    ridged = gram.clone()
    ridged.diagonal().add_(ridge * gram.diagonal().mean().clamp(min=1e-12))
    return torch.cholesky_solve(cross, torch.linalg.cholesky(ridged, out=ridged))
