"""How sure a planner's choice is, in words."""

from __future__ import annotations

from typing import Any

from swm.plan import Window

NAMED = 3  # plans at most


def finalists_sentence(finalists: dict[str, Any] | None) -> str:
    """Which of the last plans compared are as good as the chosen one, as far as the text tells; empty without others.

    Args:
        finalists: as in a saved plan.
    """
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
    return f"{some} as good as far as {texts} can tell, before healing: {named}{more}. Any of them is a fair choice."


def _times(other: dict[str, Any]) -> str:
    return f"{other['ratio']:.3f} [{other['low']:.3f}, {other['high']:.3f}] times"


def _windows(other: dict[str, Any]) -> str:
    return " ".join(str(Window(*pair)) for pair in other["windows"])
