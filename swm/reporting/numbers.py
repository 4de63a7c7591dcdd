"""How the numbers of a comparison are written, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swm.evaluation.paired import TOO_FEW
from swm.reporting.row import Change, Range, Ratio, percent_interval
from swm.reporting.verdict import UNCLEAR, digits_for, is_shown

MISSING = "–"


def interval(entry: Mapping[str, Any] | None, digits: int = 1) -> str:
    """A perplexity or a continuous score with its 95 % interval; a perplexity of a single text has none."""
    if not entry:
        return MISSING
    value, *ends = (_short(entry[name], digits) for name in ("value", "low", "high") if name in entry)
    return f"{value} [{', '.join(ends)}]" if ends and entry.get("texts") != 1 else value


def _short(value: float, digits: int) -> str:
    """A number, shortened if it is huge: perplexities of broken models reach millions."""
    return f"{value:,.{digits}f}" if value < 1000 else f"{value:,.0f}" if value < 100_000 else f"{value:.1e}"


def speedup(entry: Range | None) -> str:
    """A speedup with its smallest and largest ratio; without a value of its own if it may be none."""
    if not entry:
        return MISSING
    shown = f"{entry['value']:.2f}" if is_shown(entry, 1.0) else UNCLEAR
    return f"{shown} [{entry['low']:.2f}, {entry['high']:.2f}]"


def percent(value: float | None, stderr: float | None) -> str:
    """A share with its 95 % interval, in percent."""
    if value is None or stderr is None:
        return MISSING
    share, low, high = percent_interval(value, stderr)
    return f"{share:.1f} [{low:.1f}, {high:.1f}]"


def points(entry: Change | None, factor: float = 100, digits: int = 1) -> str:
    """A difference with its interval; of shares, in points, unless another factor is given.

    Without a value of its own if the interval contains 0, and nothing but that from too few documents.
    """
    if entry is None or entry["difference"] is None:
        return MISSING
    if entry.get("verdict") == TOO_FEW:
        return TOO_FEW
    ends = [factor * entry[name] for name in ("difference", "low", "high")]
    digits = digits_for(ends[1:], digits)
    value, low, high = (f"{end:+,.{digits}f}" for end in ends)
    return f"{value if is_shown(entry) else UNCLEAR} [{low}, {high}]"


def ratio(entry: Ratio | None) -> str:
    """A ratio of perplexities with its interval, as in "× 1.09 [1.04, 1.14]"; older results compare unpaired.

    If the interval contains 1, it is shown without a value, as in "unclear × [0.98, 1.04]".
    """
    if not entry:
        return MISSING
    value, low, high = (_times(entry[name]) for name in ("ratio", "low", "high"))
    shown = f"× {value}" if is_shown(entry, 1.0) else f"{UNCLEAR} ×"
    return f"{shown} [{low}, {high}]{'' if entry['paired'] else ' (unpaired)'}"


def _times(value: float) -> str:
    if value > 10_000:
        return "over 10,000"
    return f"{value:,.3f}" if 0.95 < value < 1.05 else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def number(value: float | None, digits: int) -> str:
    """A number with this many decimals; a dash if there is none."""
    return MISSING if value is None else f"{value:,.{digits}f}"
