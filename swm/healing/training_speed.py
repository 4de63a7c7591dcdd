"""How fast a recovery trains, and the time left."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def training_speed(events: Sequence[dict[str, Any]], settings: dict[str, Any]) -> tuple[float | None, float | None]:
    """Tokens per second over the last steps of a recovery, and seconds left; None until enough steps are done.

    Args:
        events: with `time`, `step` and `steps`, oldest first; only those with a loss count.
        settings: `batch`, `accumulate` and `length`.
    """
    steps = [event for event in events if "loss" in event][-20:]
    times = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(steps) if b["step"] > a["step"]]
    seconds = statistics.median(times) if times else 0.0  # the median ignores a pause or repeated steps
    if seconds <= 0 or not settings:
        return None, None
    tokens = settings["batch"] * settings["accumulate"] * settings["length"]
    return tokens / seconds, seconds * (steps[-1]["steps"] - steps[-1]["step"])
