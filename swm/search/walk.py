"""One walk of the sliding-window search: its positions, which windows it accepts, and where it ends.

A position consists of the windows committed so far and the window being tried. Whether that window is accepted depends
on the threshold T only through `similarity >= T`.

Source: Sliding-Window Merging, arXiv:2502.19159, Fig. 2. Deliberate differences from the released code: accepts at
equality, commits a window still open at the bottom, never tries a window of one layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from swm.errors import SettingsError
from swm.plan import Window

Windows = tuple[Window, ...]


@dataclass(frozen=True)
class Position:
    """The state of a walk: windows committed so far (lowest first), and the window low..high to try next."""

    committed: Windows
    high: int
    low: int

    @property
    def window(self) -> Window:
        """The window to try."""
        return Window(self.low, self.high)

    @property
    def at_bottom(self) -> bool:
        """Whether no layer is left to try."""
        return self.low < 0

    def can_leave(self, layers: int, layer_count: int) -> bool:
        """Whether the walk can still end with `layers` layers: accepted windows merge, all layers below may."""
        most = layer_count - sum(len(window) - 1 for window in self.committed) - (self.high - self.low - 1)
        return most - (self.low + 1) <= layers <= most

    def accepted(self) -> Position:
        """The next position after accepting: the window grows downward by one layer."""
        return Position(self.committed, self.high, self.low - 1)

    def rejected(self) -> Position:
        """The next position after rejecting: commits the layers accepted so far if there are two or more, and starts a
        new window at the layer that failed."""
        return Position(self._with_pending(), self.low, self.low - 1)

    def _with_pending(self) -> Windows:
        pending = Window(self.low + 1, self.high)
        return (pending, *self.committed) if len(pending) >= 2 else self.committed

    def final_windows(self) -> Windows:
        """The plan's windows once the walk reaches the bottom; includes a window still open there."""
        return self._with_pending()


@dataclass(frozen=True)
class Trial:
    """One window tried: its similarity, and whether it was accepted.

    With `at_most`, the similarity is an upper bound: the window had clearly failed before all texts were run.
    """

    window: Window
    similarity: float
    accepted: bool
    committed: Windows = ()
    at_most: bool = False


@dataclass
class Walk:
    """One walk: its position, and the interval (`low`, `high`] of thresholds that lead to the same trace."""

    position: Position
    low: float = -math.inf
    high: float = math.inf
    trace: list[Trial] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the walk has reached the bottom."""
        return self.position.at_bottom


def walk_at(
    layer_count: int, protect_last: int, threshold: float, similarity_of: Callable[[Windows, Window], float | None]
) -> Walk:
    """The walk from the top to the bottom, or to the first similarity that is None."""
    walk = Walk(start(layer_count, protect_last))
    while not walk.complete:
        position = walk.position
        similarity = similarity_of(position.committed, position.window)
        if similarity is None:
            break
        accepted = similarity >= threshold
        walk.trace.append(Trial(position.window, similarity, accepted, position.committed))
        if accepted:
            walk.high = min(walk.high, similarity)
            walk.position = position.accepted()
        else:
            walk.low = max(walk.low, similarity)
            walk.position = position.rejected()
    return walk


def start(layer_count: int, protect_last: int) -> Position:
    """The first position: the window of the top two layers that may be merged."""
    high = layer_count - 1 - protect_last
    return Position((), high, high - 1)


def check_threshold(threshold: float) -> None:
    """Raise SettingsError unless `threshold` is a number in (0, 1]."""
    if not 0 < threshold <= 1:  # also false for NaN
        raise SettingsError(f"Threshold {threshold} is out of range: use a value above 0 and at most 1.")


def check_range(low: float, high: float = 1.0) -> None:
    """Raise SettingsError unless low < high, both in (0, 1]."""
    check_threshold(low)
    check_threshold(high)
    if low >= high:
        raise SettingsError(f"--from {low:g} must be below the upper end of the path, {high:g}. Choose a lower value.")
