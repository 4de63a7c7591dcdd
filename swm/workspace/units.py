"""Bytes and seconds in readable units."""

from __future__ import annotations

UNITS = (("days", 86_400, 172_800), ("h", 3600, 5400), ("min", 60, 100), ("s", 1, 0))  # its seconds, and used from here


def gib(size: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def duration_range(low: float, high: float) -> str:
    """Two times in one unit, rounded as estimates deserve, as in "4 to 8 min"; one if they round to the same."""
    unit, size = next((unit, size) for unit, size, smallest in UNITS if high >= smallest)
    digits = 1 if unit in ("h", "days") and high < 10 * size else 0
    ends = [f"{max(end / size, 0 if digits else 1):,.{digits}f}" for end in (low, high)]
    return f"{ends[0]} to {ends[1]} {unit}" if ends[0] != ends[1] else f"{ends[1]} {unit}"


def duration(seconds: float) -> str:
    """Seconds in seconds, minutes, hours or days."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:,.1f} days"
