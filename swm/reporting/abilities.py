"""What each layer does, in numbers and in a sentence: by how much bits per byte rise without it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from swm.evaluation.paired import relative_rise
from swm.registry import ABILITIES, ABILITY_GROUPS
from swm.reporting.row import Row
from swm.texts.requests import MOST, ability_title, request_key, requests_of
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE

FILE, BEFORE_HEALING = "abilities.json", "abilities-merged.json"
LAYER, ATTENTION, MLP = PARTS = ("layer", "attention", "mlp")
GROUP_TITLES = {
    "knowledge": "Knowledge",
    "context": "Using context",
    "reasoning": "Reasoning",
    "code": "Code",
    "own": "Yours",
}
MOST_OF_A_SENTENCE = 6  # neighbouring layers that the sentence speaks of together
HARDLY = 0.15  # rise up to which an ability hardly needs layers
Rise = dict[str, float]
Answers = dict[str, dict[str, float]]  # by ability and request, bits per byte of the right answer


@dataclass(frozen=True)
class AbilityMap:
    """The layers of a model and its abilities.

    Attributes:
        abilities: names, those of a group together.
        rises: by ability, for each layer: `value`, `low`, `high`, as shares of the original's bits per byte.
        requests: of each ability.
    """

    abilities: list[str]
    rises: dict[str, list[Rise]]
    requests: dict[str, int]

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(next(iter(self.rises.values()), []))


def ability_group(ability: str) -> str:
    """The group of an ability; "own" for one's own file."""
    return ABILITIES[ability].group if ability in ABILITIES else "own"


def in_order(abilities: Sequence[str]) -> list[str]:
    """Abilities by group, in the order that the groups have."""
    places = list(ABILITIES)
    return sorted(
        abilities,
        key=lambda name: (
            ABILITY_GROUPS.index(ability_group(name)),
            places.index(name) if name in places else len(places),
            name,
        ),
    )


def ability_map(data: Mapping[str, Any], layers: int, part: str = LAYER) -> AbilityMap:
    """The map of what abilities.json holds.

    Args:
        part: one of PARTS.
    """
    names = [name if part == LAYER else f"{name} {part}" for name in map(str, range(layers))]
    measured = {
        ability: entry
        for ability, entry in data["abilities"].items()
        if len(entry["ids"]) > 1 and set(names) <= set(entry["scores"])
    }
    rises = {
        ability: [relative_rise(entry["scores"]["original"]["bits"], entry["scores"][name]["bits"]) for name in names]
        for ability, entry in measured.items()
    }
    return AbilityMap(in_order(list(rises)), rises, {name: len(entry["ids"]) for name, entry in measured.items()})


def has_parts(data: Mapping[str, Any]) -> bool:
    """Whether attention and MLP were left out apart, of any ability."""
    return any(f"0 {ATTENTION}" in entry["scores"] for entry in data["abilities"].values())


def is_clear(rise: Rise) -> bool:
    """Whether the interval leaves no doubt that something rose, or fell."""
    return rise["low"] > 0 or rise["high"] < 0


def percent(rise: Rise) -> str:
    """A rise as in "+45 % [38, 52]"."""
    value, low, high = (100 * rise[name] for name in ("value", "low", "high"))
    return f"{value:+,.0f} % [{low:+,.0f}, {high:+,.0f}]"


def conclusion(found: AbilityMap) -> str:
    """One sentence about neighbouring layers of which one ability needs each and another hardly any.

    Needed: at least three times as much as the other, by the intervals' ends. Empty if there are no such layers; of
    several runs, that of the largest rise, long ones preferred.
    """
    best, words = 0.0, ""
    for first in range(1, found.layers - 1):
        for last in range(first + 1, min(first + MOST_OF_A_SENTENCE, found.layers - 1)):
            some = {name: found.rises[name][first : last + 1] for name in found.abilities}
            needed = {name: min(rise["low"] for rise in rises) for name, rises in some.items()}
            spared = {name: max(rise["high"] for rise in rises) for name, rises in some.items()}
            most, least = max(needed, key=needed.__getitem__), min(spared, key=spared.__getitem__)
            weight = math.log1p(max(0.0, needed[most])) * math.sqrt(last - first + 1)
            if weight > best and spared[least] < min(needed[most] / 3, HARDLY):
                best, words = weight, _sentence(f"Layers {first}-{last}", most, least, some)
    return words


def _sentence(layers: str, most: str, least: str, rises: Mapping[str, Sequence[Rise]]) -> str:
    needed, spared = (100 * sum(rise["value"] for rise in rises[name]) / len(rises[name]) for name in (most, least))
    return (
        f"{layers} carry {lower_title(most)} ({needed:+.0f} % bits without one of them) and are hardly needed for "
        f"{lower_title(least)} ({spared:+.0f} %)."
    )


def lower_title(ability: str) -> str:
    """What an ability is called inside a sentence."""
    title = ability_title(ability)
    return title if title == "Python" or ability not in ABILITIES else title[0].lower() + title[1:]


class Suffered(NamedTuple):
    """A request that became harder: bits per byte of its answer before and after, and what was picked of its
    choices."""

    question: str
    answer: str
    before: float
    after: float
    picked_before: str
    picked_after: str


def worst_requests(data: Mapping[str, Any], ability: str, variant: str, count: int) -> list[Suffered]:
    """The requests of an ability whose bits rose most in a variant of abilities.json, the worst first.

    Raises:
        TextError: if the requests cannot be read. Those that have changed since are left out.
    """
    entry = data["abilities"][ability]
    before, after = entry["scores"]["original"], entry["scores"][variant]
    known = {request_key(each): each for each in requests_of(ability, "choosing", MOST)}
    order = sorted(range(len(entry["ids"])), key=lambda n: before["bits"][n] - after["bits"][n])
    found = list[Suffered]()
    for n in order:
        if (request := known.get(entry["ids"][n])) and len(found) < count and after["bits"][n] > before["bits"][n]:
            picks = [request.choices[side["picked"][n]] if len(request.choices) > 1 else "" for side in (before, after)]
            question = request.prompt.rstrip().rpartition("\n\n")[2]
            found.append(Suffered(question, request.answer, before["bits"][n], after["bits"][n], picks[0], picks[1]))
    return found


def profile(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Rise]:
    """By ability, by how much bits per byte rose from one model to another, over the requests that both answered.

    Args:
        before, after: what the two runs' abilities.json hold.
    """
    return rises_of(_answers(before), _answers(after))


def rises_of(before: Answers, after: Answers, among: int = 1) -> dict[str, Rise]:
    """By ability, as in `profile`; `among` as for `relative_rise`."""
    found = {}
    for ability in in_order([name for name in after if name in before]):
        one, other = before[ability], after[ability]
        shared = [key for key in one if key in other]
        if len(shared) > 1:
            found[ability] = relative_rise([one[key] for key in shared], [other[key] for key in shared], among)
    return found


def mean_rise(rises: Sequence[Rise]) -> Rise:
    """The mean over abilities, whose requests are different ones."""
    value = math.fsum(rise["value"] for rise in rises) / len(rises)
    reach = math.hypot(*(rise["high"] - rise["value"] for rise in rises)) / len(rises)
    return {"value": value, "low": value - reach, "high": value + reach}


def answers_of(row: Row) -> Answers:
    """What a row's model scored on each request; empty if it was not measured."""
    run = Experiment.open(row.experiment).run(row.run)
    healed_later = row.stage == "merged" and run.stage == "recovered"
    return _answers(run.read(BEFORE_HEALING if healed_later else FILE) or {"abilities": {}})


def profile_of(row: Row, against: str = BASELINE) -> dict[str, Rise]:
    """The rises of a row's model against a run of its experiment; empty if one of the two was not measured."""
    if row.run == against:
        return {}
    before = Experiment.open(row.experiment).run(against).read(FILE) or {"abilities": {}}
    return rises_of(_answers(before), answers_of(row))


def lost_words(row: Row) -> str:
    """What a row's model keeps and loses against the original, and a healed one against its control; or empty."""
    if not (against_original := verdict(profile_of(row))):
        return ""
    control = verdict(profile_of(row, row.control_run)) if row.stage == "recovered" and row.control_run else ""
    return f"Against the original, it {against_original}" + (
        f"; against its control, it {control}." if control else "."
    )


def _answers(data: Mapping[str, Any]) -> Answers:
    return {
        ability: dict(zip(entry["ids"], entry["scores"]["model"]["bits"], strict=True))
        for ability, entry in data["abilities"].items()
    }


def verdict(rises: Mapping[str, Rise]) -> str:
    """What a model keeps and loses, as in "keeps logic (+1 % [-2, 4]), loses reading: +45 % [38, 52] bits"; empty if no
    rise is clear."""
    clear = {name: rise for name, rise in rises.items() if is_clear(rise) and rise["value"] > 0}
    if not clear:
        return ""
    worst = max(clear, key=lambda name: clear[name]["low"])
    best = min(rises, key=lambda name: rises[name]["high"])
    lost = f"loses {lower_title(worst)}: {percent(clear[worst])} bits"
    if best == worst or rises[best]["high"] >= clear[worst]["low"]:
        return lost
    kept = "keeps" if rises[best]["high"] < 0.1 or not is_clear(rises[best]) else "keeps more of"
    return f"{kept} {lower_title(best)} ({percent(rises[best])}), {lost}"


def kept_sentence(data: Mapping[str, Any]) -> str:
    """What a plan that was judged by abilities keeps and gives up, on requests that nothing was chosen by."""
    rises: Mapping[str, Rise] = data.get("kept") or {}
    if not rises:
        return ""
    names = [part.rpartition("=")[0] for part in data["keep"].split(",")]
    kept = ", ".join(f"{lower_title(name)} {percent(rises[name])}" for name in names if name in rises)
    others = [name for name in rises if name not in names and is_clear(rises[name]) and rises[name]["value"] > 0]
    lost = ", ".join(
        f"{lower_title(name)} {percent(rises[name])}"
        for name in sorted(others, key=lambda name: -rises[name]["value"])[:3]
    )
    text = f"Chosen to keep {kept} bits, on requests that it was not chosen by."
    return f"{text} It gives up most of {lost}." if lost else text
