"""Changes of how a model's modules run, undone when a block ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes registered hooks when the block ends, even if it raises."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def forward_replaced(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Calls another function in place of the modules' own."""
    originals = [(module, module.__dict__.get("forward")) for module in modules]
    try:
        for module, _ in originals:
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, original in originals:
            if original is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = original
