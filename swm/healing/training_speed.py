"""How fast a recovery trains."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def training_speed(events: Sequence[dict[str, Any]], settings: dict[str, Any]) -> float | None:
    """Tokens per second over the last steps of a recovery; None until enough steps are done.

    Args:
        events: with `time` and `step`, oldest first; only those with a loss count.
        settings: `batch`, `accumulate` and `length`.
    """
    steps = [event for event in events if "loss" in event][-20:]
    times = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(steps) if b["step"] > a["step"]]
    seconds = statistics.median(times) if times else 0.0  # the median ignores a pause or repeated steps
    if seconds <= 0 or not settings:
        return None
    return float(settings["batch"] * settings["accumulate"] * settings["length"] / seconds)
