"""How alike two layers' outputs are, each formula as a sum over indices in float64.

Every x and y here has shape (samples, width), the same samples in the same order; widths may differ for CKA only.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


def linear_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Biased CKA with K = X X^T. Source: Kornblith et al. 2019, arXiv:1905.00414."""
    return biased_cka(linear_gram(x), linear_gram(y))


def debiased_cka(x: ArrayLike, y: ArrayLike) -> float:
    """CKA with K = X X^T and the unbiased HSIC. Needs four samples or more. Source: Nguyen 2020, arXiv:2010.15327."""
    k, l = linear_gram(x), linear_gram(y)  # noqa: E741 - the papers' letters
    return normalised(unbiased_hsic(k, l), unbiased_hsic(k, k), unbiased_hsic(l, l))


def rbf_cka(x: ArrayLike, y: ArrayLike, fraction: float = 0.5) -> float:
    """Biased CKA with Gaussian kernels, each as wide as `fraction` of its own input's median distance."""
    return biased_cka(
        rbf_gram(x, fraction * median_distance(x)),
        rbf_gram(y, fraction * median_distance(y)),
    )


def biased_cka(k: Matrix, l: Matrix) -> float:  # noqa: E741
    """<HKH, HLH> / (|HKH| |HLH|) of two Gram matrices."""
    return normalised(biased_hsic(k, l), biased_hsic(k, k), biased_hsic(l, l))


def minibatch_debiased_cka(x_batches: list[ArrayLike], y_batches: list[ArrayLike]) -> float:
    """Debiased linear CKA over minibatches: the three HSIC are added up, then divided once. Source: Nguyen 2020."""
    sums = np.zeros(3)
    for x, y in zip(x_batches, y_batches, strict=True):
        k, l = linear_gram(x), linear_gram(y)  # noqa: E741
        sums += unbiased_hsic(k, l), unbiased_hsic(k, k), unbiased_hsic(l, l)
    return normalised(*sums)


def biased_hsic(k: Matrix, l: Matrix) -> float:  # noqa: E741
    """<HKH, HLH>, written out: pairs, minus triples that share an index, plus all pairs of pairs."""
    n = len(k)
    pairs = np.einsum("ij,ij->", k, l)
    triples = np.einsum("ij,ik->", k, l)
    return float(pairs - 2 / n * triples + k.sum() * l.sum() / n**2)


def unbiased_hsic(k: Matrix, l: Matrix) -> float:  # noqa: E741
    """The estimator of Song et al. 2012 (JMLR 13, equation 5), from Gram matrices whose diagonal is ignored."""
    n = len(k)
    if n < 4:
        raise ValueError(f"The unbiased HSIC needs four samples or more (got {n}).")
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    trace = np.einsum("ij,ji->", k, l)
    product_of_sums = k.sum() * l.sum() / ((n - 1) * (n - 2))
    triples = 2 / (n - 2) * np.einsum("ij,jk->", k, l)
    return float(trace + product_of_sums - triples) / (n * (n - 3))


def normalised(cross: float, first: float, second: float) -> float:
    return float(cross / math.sqrt(first * second))


def linear_gram(x: ArrayLike) -> Matrix:
    """Dot product of every two samples."""
    values = as_float64(x)
    return np.einsum("ip,jp->ij", values, values)


def rbf_gram(x: ArrayLike, sigma: float) -> Matrix:
    """exp(-d^2 / (2 sigma^2)) of every two samples."""
    return np.exp(-(distances(x) ** 2) / (2 * sigma**2))


def median_distance(x: ArrayLike) -> float:
    """Median distance between different samples, each pair once; of an even number of pairs the middle two's mean."""
    above_diagonal = np.triu_indices(len(as_float64(x)), k=1)
    return float(np.median(distances(x)[above_diagonal]))


def distances(x: ArrayLike) -> Matrix:
    """Euclidean distance of every two samples, from their differences."""
    values = as_float64(x)
    return np.sqrt(((values[:, None, :] - values[None, :, :]) ** 2).sum(-1))


def token_cosines(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Cosine of each sample of x with the same sample of y, shape (samples,)."""
    one, other = as_float64(x), as_float64(y)
    products = np.einsum("ip,ip->i", one, other)
    return products / np.sqrt(np.einsum("ip,ip->i", one, one) * np.einsum("ip,ip->i", other, other))


def cosine_similarity(x: ArrayLike, y: ArrayLike) -> float:
    """Mean over tokens of the cosine."""
    return float(token_cosines(x, y).mean())


def angular_similarity(x: ArrayLike, y: ArrayLike) -> float:
    """Mean over tokens of 1 - angle / pi: 1 same direction, 0.5 at right angles, 0 opposite."""
    return float(1 - (np.arccos(token_cosines(x, y).clip(-1, 1)) / math.pi).mean())


def mean_token_cosine(x: ArrayLike, y: ArrayLike) -> float:
    """Cosine of the mean token of x with the mean token of y."""
    return cosine_similarity(as_float64(x).mean(0, keepdims=True), as_float64(y).mean(0, keepdims=True))


def mean_token_angular(x: ArrayLike, y: ArrayLike) -> float:
    """1 - angle / pi between the mean tokens."""
    return angular_similarity(as_float64(x).mean(0, keepdims=True), as_float64(y).mean(0, keepdims=True))


def block_influence(inputs: ArrayLike, outputs: ArrayLike) -> float:
    """1 - mean over tokens of the cosine of a layer's input and output. Source: ShortGPT, arXiv:2403.03853."""
    return 1 - cosine_similarity(inputs, outputs)


def as_float64(x: ArrayLike) -> Matrix:
    return np.asarray(x, dtype=np.float64)
