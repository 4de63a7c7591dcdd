"""How long-running work reports progress: one function for all stages."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""`progress(done, total, text)`; total is 0 if unknown. May raise Cancelled: finished work is kept."""

UNLIKE = 10_007  # total of progress in shares of a whole whose parts take unlike times; no count of steps has it


def no_progress(done: int, total: int, text: str) -> None:
    """Ignores progress."""


def named(stage: str, progress: Progress) -> Progress:
    """Progress of one of several stages, prefixed with its name; logs the start of the stage."""
    log.info("%s", stage)
    return lambda done, total, text: progress(done, total, f"{stage}: {text}")


def part_of(progress: Progress, place: int, parts: int, name: str) -> Progress:
    """Progress of part `place` (from 0) of `parts`, in shares of the whole; it never decreases."""
    numbered = f"{name} ({place + 1} of {parts}): "
    return share_of(
        lambda done, total, text: progress(done, total, numbered + text), place / parts, (place + 1) / parts
    )


def share_of(progress: Progress, first: float, last: float, whole: int = UNLIKE) -> Progress:
    """Progress of the part from `first` to `last` of a whole (0 to 1), out of `whole`; it never decreases."""
    share = 0.0

    def report(done: int, total: int, text: str) -> None:
        nonlocal share
        share = max(share, min(1.0, done / total) if total else 0.0)
        progress(round(whole * (first + (last - first) * share)), whole, text)

    return report
