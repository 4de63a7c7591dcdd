"""What was removed, what it gained and what it cost, in a sentence or two that a row's own numbers support."""

from __future__ import annotations

import math
from typing import Any

from swm.evaluation.paired import VERDICTS

Entry = dict[str, Any]


def verdict(row: Entry) -> str:
    """The verdict on a row of `judged`: layers, speed and size, then each kind of score with how sure it is.

    A healed model is judged against its control, the original healed in the same way; any other against the original.
    """
    if row["stage"] == "original":
        return f"The original model: {row['layers']} layers, {row['parameters'] / 1e6:,.1f} million parameters."
    against = row["against_control"] or row["against_original"]
    costs = _costs(row, against)
    if not costs:
        return f"{_gained(row)}. {' '.join(row['not_compared']) or 'What it cost is not measured yet.'}"
    return f"{_gained(row)}. {_reference(row)}: {'; '.join(costs)}.{_left_out(row)}"


def _gained(row: Entry) -> str:
    """What was removed and what that gains: "24 of 30 layers, 1.20 times as fast, 16 % smaller"."""
    if row["control"]:
        return "The control: the original, nothing merged, after the same LoRA training"
    parts = [f"{row['layers']} of {row['layers'] - row['deltas']['layers']} layers"]
    if row["width"]["ratio"]:
        parts.append(f"width cut by {row['width']['ratio']:.0%}".replace("%", " %"))
    parts.append(f"{row['speedup']['value']:.2f} times as fast" if row["speedup"] else "speed not measured")
    smaller = -row["deltas"]["size_bytes"] / (row["size_bytes"] - row["deltas"]["size_bytes"])
    return ", ".join([*parts, f"{100 * smaller:.0f} % smaller"])


def _reference(row: Entry) -> str:
    if row["against_control"]:
        return "Compared with the original healed in the same way"
    if row["stage"] == "recovered" and not row["control"]:
        return "Compared with the original without training (there is no control, so a gain may come from LoRA alone)"
    return "Compared with the original"


def _left_out(row: Entry) -> str:
    return "".join(f" {reason}" for reason in row["not_compared"])


def _costs(row: Entry, against: Entry | None) -> list[str]:
    """A phrase for each kind of score that was measured on both sides."""
    if against is None:
        return []
    scores, costs = against["scores"], []
    if text := independent_text(row, list(against["perplexity"])):
        costs.append(_perplexity(text, against["perplexity"][text]))
    if "choice_logprob" in scores:
        costs.append(_sureness(scores["choice_logprob"]))
    if "accuracy" in scores:
        costs.append(_accuracy(scores["accuracy"]) + _above_chance(scores["accuracy"], against.get("above_chance")))
    return costs


def independent_text(row: Entry, texts: list[str]) -> str | None:
    """The text to judge perplexity by: preferably one of another kind than those the model was planned or healed on."""
    used = {row["conditions"].get("texts"), row["recovery_text"]}
    ordered = sorted(texts, key=lambda text: (text in row["shared_texts"], text in used))
    return ordered[0] if ordered else None


def _perplexity(text: str, entry: Entry) -> str:
    ratio, low, high = entry["ratio"], entry["low"], entry["high"]
    name = f"perplexity on {text}"
    if low <= 1 <= high:
        return f"{name}: no difference shown [{_signed(100 * (low - 1), 100 * (high - 1), ' %')}]"
    if ratio >= 2:
        return f"{name} {ratio:,.1f} times as high [{low:,.1f}, {high:,.1f}]"
    change, ends = 100 * (ratio - 1), (100 * (low - 1), 100 * (high - 1))
    return f"{name} {_size(change, ends)} % {'higher' if change > 0 else 'lower'} [{_span(ends)}]"


def _sureness(entry: Entry) -> str:
    """The mean change of the log-probability of the right choice, as a change of that probability in percent."""
    if entry["verdict"] == VERDICTS[3]:
        return f"certainty of the right answer: {_too_few(entry)}"
    change, low, high = (100 * math.expm1(min(entry[name], 50.0)) for name in ("difference", "low", "high"))
    if entry["verdict"] == VERDICTS[0]:
        return f"certainty of the right answer: no difference shown [{_signed(low, high, ' %')}]"
    ends = (low, high)
    return f"{_size(change, ends)} % {'surer' if change > 0 else 'less sure'} of the right answer [{_span(ends)}]"


def _accuracy(entry: Entry) -> str:
    if entry["verdict"] == VERDICTS[3]:
        return f"accuracy: {_too_few(entry)}"
    if entry["verdict"] == VERDICTS[0]:
        return f"accuracy: no difference that {_questions(entry)} could show"
    change, *ends = (100 * entry[name] for name in ("difference", "low", "high"))
    return f"accuracy {_size(change, ends)} points {'higher' if change > 0 else 'lower'} [{_span(ends)}]"


def _above_chance(entry: Entry, above: Entry | None) -> str:
    """The accuracy of the tasks above chance alone, if it says something else: on the others, guessing adds noise."""
    if above is None or VERDICTS[3] in (entry["verdict"], above["verdict"]) or entry["verdict"] == above["verdict"]:
        return ""
    return f" (on the {above['tasks']} above chance: {_accuracy(above).removeprefix('accuracy').lstrip(': ')})"


def _too_few(entry: Entry) -> str:
    return f"too few questions to tell ({_questions(entry)})"


def _questions(entry: Entry) -> str:
    if entry["tasks"] == 1:
        return f"{entry['documents']:,} questions"
    return f"{entry['documents']:,} questions in {entry['tasks']} tasks"


def _size(change: float, ends: Any) -> str:
    return f"{abs(change):,.{_digits(ends)}f}"


def _span(ends: Any) -> str:
    """The ends of an interval without 0 inside, as sizes of the change in its direction."""
    low, high = sorted(abs(end) for end in ends)
    return f"{low:,.{_digits(ends)}f}, {high:,.{_digits(ends)}f}"


def _signed(low: float, high: float, unit: str) -> str:
    return f"{low:+,.{_digits((low, high))}f}, {high:+,.{_digits((low, high))}f}{unit}"


def _digits(ends: Any) -> int:
    sizes = [abs(end) for end in ends]
    return 0 if max(sizes) >= 10 and min(sizes) >= 0.5 else 1
