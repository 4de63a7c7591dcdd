"""What chose the windows of a plan, with its publication: a planner, the threshold search, or the user."""

from __future__ import annotations

from swm.registry import PLANNERS

BY_THRESHOLD, BY_HAND = "threshold", "windows"  # what chose a run's windows, if not a planner
SOURCES = {BY_THRESHOLD: "Sliding-Window Merging, arXiv:2502.19159", BY_HAND: "hand"}


def known_source(planner: object) -> bool:
    """Whether a value names something that chooses windows: a planner, the threshold search, or the user."""
    return isinstance(planner, str) and (planner in SOURCES or planner in PLANNERS)


def source_of(planner: str) -> str:
    """What chose a plan's windows, with its publication."""
    return SOURCES[planner] if planner in SOURCES else PLANNERS[planner].source
