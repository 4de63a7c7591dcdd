"""Gram matrices of all layers at once, their centring and products: the building blocks of kernel metrics."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from swm.errors import TextError


def u_centred(gram: Tensor) -> Tensor:
    """Gram matrices with zero diagonal, centred so that <K, L> / (n (n-3)) is the unbiased HSIC.

    Args:
        gram: shape (layers, n, n), n at least 4.

    Source: Song et al. 2012 (JMLR 13) and Nguyen et al. 2020, arXiv:2010.15327, section 2.
    """
    n = gram.shape[-1]
    check_samples(n)
    gram = gram.clone()
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    means = gram.sum(-1, dtype=torch.float64) / (n - 2)
    means = means - means.sum(-1, keepdim=True) / (2 * (n - 1))
    gram = gram - (means[..., :, None] + means[..., None, :]).to(gram.dtype)
    gram.diagonal(dim1=-2, dim2=-1).zero_()
    return gram


def check_samples(n: int) -> None:
    """Raise TextError for fewer than 4 samples."""
    if n < 4:
        raise TextError(f"{n} tokens are too few for CKA, which needs at least 4. Use longer or more texts.")


def centred(gram: Tensor) -> Tensor:
    """Centred Gram matrices HKH, H being the centring matrix; shape (layers, n, n)."""
    rows = gram.mean(-1, keepdim=True, dtype=torch.float64)
    return gram - (rows + rows.transpose(-1, -2) - rows.mean(-2, keepdim=True)).to(gram.dtype)


def linear_gram(states: Tensor) -> Tensor:
    """Gram matrix X X^T of each layer, float32. Centres the states first: more precise, and CKA stays the same."""
    x = states.float()
    x = x - x.mean(-2, keepdim=True)
    return x @ x.transpose(-1, -2)


def debiased(gram: Tensor) -> Tensor:
    """n times the unbiased HSIC of all pairs, which weights batches of unequal size by their tokens.

    Args:
        gram: U-centred Gram matrices, shape (layers, n, n).
    """
    return products_of_pairs(gram) / (gram.shape[-1] - 3)


def products_of_pairs(gram: Tensor) -> Tensor:
    """Inner products of all pairs of layers' Gram matrices, float64."""
    vectors = gram.flatten(1).double()
    return vectors @ vectors.T


def squared_distances(states: Tensor) -> Tensor:
    """Squared distances between samples, shape (layers, n, n)."""
    gram = linear_gram(states)
    square = gram.diagonal(dim1=-2, dim2=-1)
    return (square[:, :, None] + square[:, None, :] - 2 * gram).clamp_(min=0)


def median_distance(squared: Tensor) -> Tensor:
    """Median distance between distinct samples, shape (layers,)."""
    n = squared.shape[-1]
    above = torch.triu_indices(n, n, 1, device=squared.device)
    distances = squared[:, above[0], above[1]].sqrt().double()
    return (
        torch.quantile(distances, 0.5, dim=-1).float()
        if distances.shape[1] <= 2**23
        else distances.median(-1)[0].float()
    )


def token_cosines(states: Tensor) -> Tensor:
    """Cosines between layers, shape (tokens, layers, layers), float64."""
    unit = F.normalize(states.float(), dim=-1).transpose(0, 1)
    return (unit @ unit.transpose(-1, -2)).double()
