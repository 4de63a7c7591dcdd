"""What was removed, what it gained and what it cost, in a sentence or two that a row's own numbers support."""

from __future__ import annotations

import math
from collections.abc import Sequence

from swm.evaluation.paired import ACCURACY, CHOICE_LOGPROB, FEWEST_DOCUMENTS, TOO_FEW, UNDECIDED
from swm.reporting.names import text_name
from swm.reporting.row import Change, Differences, Range, Ratio, Row, Verdict

UNCLEAR = "unclear"  # what an interval around no difference shows
MOST_TIMES = 1000  # larger ratios are broken models, whose exact number means nothing


def verdict(row: Row) -> Verdict:
    """The verdict on a row of `judged`: layers, speed and size, then each kind of score with how sure it is.

    A healed model is judged against its control, the original healed in the same way; any other against the original.
    """
    if row.stage == "original":
        return Verdict(f"The original model: {row.layers} layers, {row.parameters / 1e6:,.1f} million parameters.", "")
    against = row.compared_with
    costs = _costs(row, against) if against else []
    reasons = [*(against.not_compared if against else ()), *(() if row.against_control else row.not_compared)]
    said = f"{reference(row)}: {'; '.join(costs)}." if costs else "" if reasons else "What it cost is not measured yet."
    return Verdict(f"{_gained(row)}.", " ".join(filter(None, [said, *reasons])))


def in_short(row: Row) -> str:
    """What a row of `judged` lost, in everyday words; empty if the tasks do not show it."""
    scores = row.compared_with.scores if row.compared_with else {}
    accuracy, sureness = scores.get(ACCURACY), scores.get(CHOICE_LOGPROB)
    if not accuracy or not sureness or row.control or TOO_FEW in (accuracy["verdict"], sureness["verdict"]):
        return ""
    change, ends = 100 * accuracy["difference"], [100 * accuracy["low"], 100 * accuracy["high"]]
    rights, sure = (_direction(one) for one in (accuracy, sureness))
    fewer = "more" if rights > 0 else "fewer"
    answers = (
        f"of 100 questions it answers about {_size(change, ends)} {fewer} right [{_span(ends)}]"
        if rights
        else "of 100 questions it answers between {:.{d}f} fewer and {:.{d}f} more right".format(
            -min(ends), max(ends), d=_digits(ends)
        )
    )
    less = "surer" if sure > 0 else "less sure"
    doubt = (
        f"is {less} of the right ones"
        if sure
        else "is equally certain" + ", as far as these questions show" * bool(rights)
    )
    doubt = f"{'and' if sure in (0, rights) else 'and it' if not rights else 'but'} {doubt}"
    return f"In short: {answers}, {doubt}."


def _direction(entry: Change) -> int:
    """1 for a rise that is shown, -1 for a fall, 0 for neither."""
    return 0 if entry["verdict"] == UNDECIDED else 1 if entry["difference"] > 0 else -1


def _gained(row: Row) -> str:
    """What was removed and what that gains: "24 of 30 layers, 1.20 times as fast, 16 % smaller"."""
    if row.control:
        return "The control: the original, nothing merged, after the same training"
    parts = [f"{row.layers} of {row.layers - row.deltas['layers']} layers"]
    if row.width.ratio:
        parts.append(f"width cut by {100 * row.width.ratio:.0f} %")
    parts.append(speed_words(row.speedup) if row.speedup else "speed not measured")
    smaller = round(-100 * row.deltas["size_bytes"] / (row.size_bytes - row.deltas["size_bytes"]))
    parts.append(f"{abs(smaller)} % {'smaller' if smaller > 0 else 'larger'}" if smaller else "the same size")
    return ", ".join(parts)


def is_shown(entry: Range | Change | Ratio, nothing: float = 0.0) -> bool:
    """Whether an interval leaves out `nothing`, the value of no difference: what it does not show is not stated."""
    return bool(entry["low"] > nothing or entry["high"] < nothing)


def speed_words(speedup: Range) -> str:
    """A speed relative to the original's, as in "1.20 times as fast"; "speed unclear" if it may be no faster."""
    low, high = speedup["low"], speedup["high"]
    if not is_shown(speedup, 1.0):
        return f"speed {UNCLEAR} ({low:.2f} to {high:.2f} times)"
    return f"{speedup['value']:.2f} times as fast"


def reference(row: Row) -> str:
    """What the row is compared with, and how many trainings that rests on."""
    if row.stage != "recovered":
        return "Compared with the original"
    seeds = row.seeds or (row.seed,)
    trained = f" ({len(seeds)} training seeds)" if len(seeds) > 1 else " (one training seed)"
    if row.against_control:
        return f"Compared with the original healed in the same way{trained}"
    if row.control:
        return f"Compared with the original{trained}"
    missing = f"its control, {row.control_run}, is not evaluated" if row.control_run else "there is no control"
    return f"Compared with the original without training ({missing}, so a gain may come from training alone)"


def _costs(row: Row, against: Differences) -> list[str]:
    """A phrase for each kind of score that was measured on both sides."""
    scores, costs = against.scores, []
    if text := independent_text(row, list(against.perplexity)):
        costs.append(_perplexity(text, against.perplexity[text]))
    if CHOICE_LOGPROB in scores:
        costs.append(_sureness(scores[CHOICE_LOGPROB]))
    if ACCURACY in scores:
        costs.append(_accuracy(scores[ACCURACY]) + _above_chance(scores[ACCURACY], against.above_chance))
    return costs


def independent_text(row: Row, texts: Sequence[str]) -> str | None:
    """The text to judge perplexity by: preferably of another kind than those the model was planned or healed on."""
    used = {row.conditions.get("texts"), row.recovery_text}
    ordered = sorted(texts, key=lambda text: (text in row.shared_texts, text in used))
    return ordered[0] if ordered else None


def _perplexity(text: str, entry: Ratio) -> str:
    ratio, low, high = entry["ratio"], entry["low"], entry["high"]
    name = f"perplexity on {text_name(text)}"
    ends = (100 * (low - 1), 100 * (high - 1))
    if not is_shown(entry, 1.0):
        return f"{name} {UNCLEAR}: {_between(ends)} %"
    if ratio >= MOST_TIMES:
        return f"{name} more than {MOST_TIMES:,} times as high"
    if ratio >= 2:
        return f"{name} {ratio:,.1f} times as high [{low:,.1f}, {high:,.1f}]"
    change = 100 * (ratio - 1)
    return f"{name} {_size(change, ends)} % {'higher' if change > 0 else 'lower'} [{_span(ends)}]"


def _sureness(entry: Change) -> str:
    """The mean change of the log-probability of the right choice, as a change of that probability in percent."""
    name = "certainty of the right answer"
    if entry["verdict"] == TOO_FEW:
        return f"{name}: {_too_few(entry)}"
    change, low, high = (100 * math.expm1(min(end, 50.0)) for end in (entry["difference"], entry["low"], entry["high"]))
    ends = (low, high)
    if entry["verdict"] == UNDECIDED:
        return f"{name} {UNCLEAR}: {_between(ends)} %"
    return f"{_size(change, ends)} % {'surer' if change > 0 else 'less sure'} of the right answer [{_span(ends)}]"


def _accuracy(entry: Change) -> str:
    if entry["verdict"] == TOO_FEW:
        return f"accuracy: {_too_few(entry)}"
    change, *ends = (100 * end for end in (entry["difference"], entry["low"], entry["high"]))
    if entry["verdict"] == UNDECIDED:
        return f"accuracy {UNCLEAR} after {_questions(entry)}: {_between(ends)} points"
    return f"accuracy {_size(change, ends)} points {'higher' if change > 0 else 'lower'} [{_span(ends)}]"


def _above_chance(entry: Change, above: Change | None) -> str:
    """The accuracy of the tasks above chance alone, if it says something else: on the others, guessing adds noise."""
    if above is None or TOO_FEW in (entry["verdict"], above["verdict"]) or entry["verdict"] == above["verdict"]:
        return ""
    tasks = "task" if above["tasks"] == 1 else f"{above['tasks']} tasks"
    return f" (on the {tasks} above chance: {_accuracy(above).removeprefix('accuracy').lstrip(': ')})"


def _too_few(entry: Change) -> str:
    return f"too few questions to tell ({entry['fewest']:,} per task; at least {FEWEST_DOCUMENTS} needed)"


def _questions(entry: Change) -> str:
    questions = f"{entry['documents']:,} question{'s' * (entry['documents'] != 1)}"
    return f"{questions} in {entry['tasks']} tasks" if entry["tasks"] > 1 else questions


def _size(change: float, ends: Sequence[float]) -> str:
    return f"{abs(change):,.{_digits(ends)}f}"


def _span(ends: Sequence[float]) -> str:
    """The ends of an interval without 0 inside, as sizes of the change in its direction."""
    low, high = sorted(abs(end) for end in ends)
    return f"{low:,.{_digits(ends)}f}, {high:,.{_digits(ends)}f}"


def _between(ends: Sequence[float]) -> str:
    """What an interval around 0 allows, as in "between -1 and +47"."""
    return "between {} and {}".format(*(f"{end:+,.{_digits(ends)}f}" for end in ends))


def _digits(ends: Sequence[float]) -> int:
    """Decimals of a change in percent or points: none if it is large."""
    return digits_for(ends, 0 if max(abs(end) for end in ends) >= 10 else 1)


def digits_for(ends: Sequence[float], least: int) -> int:
    """Decimals with which no end of an interval is rounded to 0: `least`, or up to two more."""
    return next((n for n in (least, least + 1) if all(round(end, n) or not end for end in ends)), least + 2)
