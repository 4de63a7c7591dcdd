"""Texts with shared beginnings as a tree of tokens, in which each token attends to its ancestors alone.

Source: tree attention of SpecInfer, arXiv:2305.09781, section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from swm.models.hooks import hooked


class TokenTree:
    """A question's choices as a tree of tokens, in which shared beginnings are stored once.

    Attributes:
        first: tokens of the first choice.
        tokens: token ids of the tree's nodes.
        parents: for each node, the index of the previous token; -1 at the beginning; always an earlier index.
        depths: for each node, its position in the text.
        scored: for each request, its index, the nodes that predict its continuation, and the continuation.
    """

    def __init__(self, context: str) -> None:
        self.context = context
        self.first: list[int] = []
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.scored: list[tuple[int, list[int], list[int]]] = []
        self._nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node

    def add(self, index: int, tokens: list[int], continuation: list[int]) -> None:
        """Add a choice: all its tokens but the last, and the continuation to score."""
        self.first = self.first or tokens
        node, path = -1, []
        for depth, token in enumerate(tokens):
            node, parent = self._nodes.setdefault((node, token), len(self.tokens)), node
            if node == len(self.tokens):
                self.tokens.append(token)
                self.parents.append(parent)
                self.depths.append(depth)
            path.append(node)
        self.scored.append((index, path[-len(continuation) :], continuation))

    @property
    def hardness(self) -> tuple[bool, int]:
        """Whether the tree branches (if not, any causal model handles it), and its number of tokens."""
        return len(self.tokens) > max(self.depths) + 1, len(self.tokens)

    def takes(self, context: str, tokens: list[int]) -> bool:
        """Whether a request belongs to this question: it has the same context, or shares half of the tokens."""
        pairs = zip(self.first, tokens, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.first), len(tokens)))
        return context == self.context or 2 * common >= min(len(self.first), len(tokens))


@contextmanager
def only_at(head: nn.Module, places: Tensor) -> Iterator[None]:
    """The head gets only these places of (rows x length), as one row."""
    chosen = lambda module, args: (args[0].flatten(0, 1)[places.to(args[0].device)][None],)  # noqa: E731
    with hooked([head.register_forward_pre_hook(chosen)]):
        yield


def ancestors(batch: Sequence[TokenTree], longest: int) -> Tensor:
    """Which tokens each token attends to, its ancestors and itself: bool, shape (rows, longest, longest)."""
    sees = np.zeros((len(batch), longest, longest), dtype=bool)
    sees[:, range(longest), range(longest)] = True  # padding sees itself
    for row, question in zip(sees, batch, strict=True):
        for node, parent in enumerate(question.parents):
            if parent >= 0:
                row[node] |= row[parent]
    return torch.from_numpy(sees)


def tree_mask(batch: Sequence[TokenTree], longest: int) -> Tensor:
    """`ancestors` as an additive attention mask, shape (rows, 1, longest, longest)."""
    sees = ancestors(batch, longest)
    return torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float16).min)[:, None]
