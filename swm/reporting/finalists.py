"""How sure a planner's choice is, in words."""

from __future__ import annotations

from typing import Any

from swm.plan import Window
from swm.registry import PLANNERS

NAMED = 3  # plans at most
MATTERS = 1.1  # times: from this ratio of perplexities on, it is said that another text can matter


def finalists_sentence(finalists: dict[str, Any] | None) -> str:
    """Which of the last plans compared are as good as the chosen one, as far as the text tells, and which are missing.

    Args:
        finalists: as in a saved plan.
    """
    late = " and ".join(PLANNERS[name].title for name in (finalists or {}).get("left_out", []) if name in PLANNERS)
    missing = f"Time was too short to try what {late} would choose as well: allow more minutes." if late else ""
    return " ".join(filter(None, [_compared(finalists), missing]))


def _compared(finalists: dict[str, Any] | None) -> str:
    others = (finalists or {}).get("others") or []
    if not finalists or not others:
        return ""
    equal = [other for other in others if other["low"] <= 1]
    texts = f"{finalists['texts']} held-out texts"
    if not equal:
        return f"On {texts} the next best plan has {_times(others[0])} its perplexity: {_windows(others[0])}."
    named = "; ".join(f"{_windows(other)} ({_times(other)})" for other in equal[:NAMED])
    more = f" and {len(equal) - NAMED} more" if len(equal) > NAMED else ""
    some = f"{len(equal)} other plans are" if len(equal) > 1 else "One other plan is"
    return (
        f"{some} as good as far as {texts} can tell, before healing: {named}{more}. Any of them is a reasonable choice."
    )


def halves_sentence(data: dict[str, Any]) -> str:
    """What a planner chose on each half of the calibration text alone; empty if that is unknown.

    Args:
        data: a saved plan.
    """
    halves = data.get("halves") or []
    if not halves:
        return ""
    title = PLANNERS[data["planner"]].title
    others = [half for half in halves if half["windows"] != data["windows"]]
    if not others:
        return f"On each half of the calibration text alone, {title} chooses the same layers."
    named = " and ".join(f"{_windows(half)} (perplexity {half['perplexity']:,.1f})" for half in others)
    which = "one half" if len(others) == 1 else "each half"
    said = f"On {which} of the calibration text alone, {title} chooses otherwise: {named}."
    if not text_matters(data):
        return f"{said} That matters little here."
    return (
        f"{said} So another text can lead to a better or a worse plan. Use more text, or best, which tests its plans."
    )


def text_matters(data: dict[str, Any]) -> bool:
    """Whether plans chosen on halves of the text differ in perplexity, so that more text is worth its time."""
    found = [data["perplexity"], *(half["perplexity"] for half in data.get("halves") or [])]
    return bool(max(found) > MATTERS * min(found))


def _times(other: dict[str, Any]) -> str:
    return f"{other['ratio']:.3f} [{other['low']:.3f}, {other['high']:.3f}] times"


def _windows(other: dict[str, Any]) -> str:
    windows = " ".join(str(Window(*pair)) for pair in other["windows"])
    return f"{windows} by rule keep_last" if other.get("rule") == "keep_last" else windows  # drops layer 0
