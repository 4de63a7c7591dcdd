"""Blocks and bands of similar layers, and sentences about them and about a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

from swm.plan import Window

LONG = 4.0  # a state this many times as long as the median stands out
STEP = 0.05  # a smaller difference of mean similarities is not called one


def similar_patches(matrix: Sequence[Sequence[float]], level: float) -> tuple[Window, ...]:
    """Blocks of two or more neighbouring layers in which every pair is at least this similar, from the lowest up.

    Each block is as long as possible from its first layer; the next starts above it.
    """
    blocks, first = [], 0
    while first < len(matrix):
        last = first
        while last + 1 < len(matrix) and min(matrix[layer][last + 1] for layer in range(first, last + 1)) >= level:
            last += 1
        if last > first:
            blocks.append(Window(first, last))
        first = last + 1
    return tuple(blocks)


def bands(matrix: Sequence[Sequence[float]]) -> tuple[Window, ...]:
    """Runs of three or more layers, each like the next, the longest first; between them are the steps of the map.

    A step is a pair of neighbours on the low side of the split of all neighbours' similarities into two groups that
    leaves the least variance within them (Otsu 1979), if the groups' means differ by more than STEP.
    """
    near = [matrix[layer][layer + 1] for layer in range(len(matrix) - 1)]
    level = _split(near)
    runs, first = [], 0
    for layer in range(len(matrix)):
        if layer == len(near) or near[layer] < level:
            runs += [Window(first, layer)] if layer - first >= 2 else []
            first = layer + 1
    return tuple(sorted(runs, key=len, reverse=True))


def _split(values: Sequence[float]) -> float:
    """The lowest value of the upper of two groups; minus infinity if the groups hardly differ."""
    ordered = sorted(values)
    best, level = 0.0, -math.inf
    for count in range(1, len(ordered)):
        low, high = ordered[:count], ordered[count:]
        gap = sum(high) / len(high) - sum(low) / len(low)
        if gap > STEP and (between := len(low) * len(high) * gap**2) > best:
            best, level = between, high[0]
    return level


def band_sentence(matrix: Sequence[Sequence[float]], metric: str) -> str:
    """A sentence on the longest bands of a map: how alike neighbours are in each, and layers further apart."""
    sentences = []
    for band in bands(matrix)[:2]:
        far = min(10, len(band) - 1)
        near, away = (_mean_at(matrix, band, distance) for distance in (1, far))
        start = f"Layers {band.first} to {band.last} form a {'block' if near - away < STEP else 'band'}"
        then = f"and {'like' if near - away < STEP else 'less like'} the one {far} layers on ({away:.2f})"
        sentences.append(f"{start}: each is like the next ({metric} {near:.2f}) {then}.")
    return " ".join(sentences) or "No three neighbouring layers are alike compared with the rest."


def first_tokens_sentence(
    without: Sequence[Sequence[float]], whole: Sequence[Sequence[float]], skipped: int, metric: str
) -> str:
    """A sentence on what the first tokens of each text do to a map, judged inside its longest band."""
    band = next(iter(bands(without)), Window(0, len(without) - 1))
    pairs = [(i, j) for i in range(band.first, band.last + 1) for j in range(band.first, i)]
    means = [sum(matrix[i][j] for i, j in pairs) / max(1, len(pairs)) for matrix in (without, whole)]
    start = (
        f"Between layers {band.first} and {band.last}, two layers have {metric} {means[0]:.2f} on average without the "
        f"first {skipped} tokens of each text, and {means[1]:.2f} with them."
    )
    if means[1] - means[0] < STEP:
        return f"{start} Here these tokens make little difference."
    return (
        f"{start} In most models a few tokens, the first ones above all, have a norm so large that they outweigh all "
        "others (massive activations, arXiv:2402.17762): layers that differ for every other token look alike."
    )


def _mean_at(matrix: Sequence[Sequence[float]], band: Window, distance: int) -> float:
    values = [matrix[layer][layer + distance] for layer in range(band.first, band.last + 1 - distance)]
    return sum(values) / len(values)


def unmerged_sentence(matrix: Sequence[Sequence[float]], level: float, windows: Sequence[Window]) -> str:
    """Why the most similar block is not among the windows; empty if it is, or if there is no block or window."""
    blocks = similar_patches(matrix, level)
    if not (blocks and windows):
        return ""
    block = max(blocks, key=lambda each: _mean_at(matrix, each, 1))
    if any(min(block.last, window.last) > max(block.first, window.first) for window in windows):
        return ""
    return (
        f"The most similar block, layers {block}, is not what merges: outputs that look alike can still differ in what "
        "the layers above need, so the search asks what merging does to the model's final output."
    )


def pair_sentence(matrix: Sequence[Sequence[float]], low: int, high: int, metric: str) -> str:
    """A sentence on the similarity of two layers: its value, its rank among all pairs, and what it means."""
    if low == high:
        return f"Layer {low} with itself: always 1. Click off the diagonal to compare two layers."
    value = matrix[low][high]
    pairs = [matrix[i][j] for i in range(len(matrix)) for j in range(i)]
    rank = sum(other > value for other in pairs) + 1
    return f"Layers {low} and {high}: {metric} {value:.4f}, rank {rank:,} of {len(pairs):,} pairs. Their outputs " + (
        "carry nearly the same information." if value >= 0.95 else "overlap partly." if value >= 0.5 else "differ."
    )


def long_states_sentence(medians: Sequence[float], largest: Sequence[float]) -> str:
    """Which layer has the longest hidden states relative to its median, and what follows; empty if none stands out.

    A few tokens, often frequent words in mid-text, can have states many times as long as all others ("massive
    activations", arXiv:2402.17762). CKA weighs tokens by the squares of their states, so they can shape a whole map.
    """
    ratios = [most / median if median else 0.0 for median, most in zip(medians, largest, strict=True)]
    layer = max(range(len(ratios)), key=ratios.__getitem__)
    if ratios[layer] < LONG:
        return ""
    count = sum(ratio >= LONG for ratio in ratios)
    return (
        f"After layer {layer} the longest state is {ratios[layer]:.0f} times the median, and more than {LONG:g} times "
        f"after {count} of {len(ratios)} layers, although the first tokens are left out: a few tokens in mid-text. CKA "
        "weighs tokens by the squares of their states, so these few can shape the map; cosine and angular similarity "
        "weigh all tokens equally. Rely on patterns that appear in both."
    )
