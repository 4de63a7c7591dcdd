"""Blocks of similar layers, and a sentence about a pair."""

from __future__ import annotations

from collections.abc import Sequence

from swm.plan import Window


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
