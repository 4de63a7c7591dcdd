"""How fast a recovery trains, and how long it will still take."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def training_speed(events: Sequence[dict[str, Any]], settings: dict[str, Any]) -> tuple[float | None, float | None]:
    """Tokens per second over the last steps of a recovery, and seconds left; None while too few are done.

    Args:
        events: with `time`, `step` and `steps`, oldest first; those with a loss count.
        settings: `batch`, `accumulate` and `length`.
    """
    trained = [event for event in events if "loss" in event][-20:]
    each = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(trained) if b["step"] > a["step"]]
    seconds = statistics.median(each) if each else 0.0  # a pause, or steps done again, are single ones among many
    if seconds <= 0 or not settings:
        return None, None
    tokens = settings["batch"] * settings["accumulate"] * settings["length"]
    return tokens / seconds, seconds * (trained[-1]["steps"] - trained[-1]["step"])
