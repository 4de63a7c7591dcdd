"""What each method of a study keeps and gives up, ability by ability, before healing and after it."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from swm.reporting.abilities import Answers, Rise, answers_of, lower_title, mean_rise, percent, profile_of, rises_of
from swm.reporting.glossary import method_name
from swm.reporting.names import ORIGINAL, stage_of
from swm.reporting.row import Row
from swm.reporting.seeds import mean_interval
from swm.studies.rows import study_groups
from swm.workspace.experiments import Experiment

MOST_EXCEPTIONS = 3  # abilities that the sentence names which another method keeps better


class Profile(NamedTuple):
    """A method's model.

    Attributes:
        row: of the study's table; a mean over seeds, if it was healed with several.
        rises: by ability, of the bits per byte against the original; the intervals include the spread over seeds.
        answers: means over seeds.
    """

    row: Row
    rises: dict[str, Rise]
    answers: Answers

    @property
    def mean(self) -> Rise:
        """The mean rise of all abilities."""
        return mean_rise([*self.rises.values()])

    @property
    def method(self) -> str:
        """The method's name in sentences; of the control, what it is."""
        return stage_of(self.row) if self.row.control else method_name(str(self.row.method))

    @property
    def name(self) -> str:
        """The name in a picture, as in "best (merged + LoRA)"."""
        if self.row.control:
            return self.method
        return self.method if self.row.stage == "merged" else f"{self.method}, healed"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        row = self.row
        place = {"run": row.run, "method": row.method, "layers": row.layers, "stage": row.stage}
        return {**place, "mean": self.mean, "rises": self.rises}


def profiles_of(experiment: Experiment, runs: Collection[str]) -> list[Profile]:
    """The models of a study's runs whose abilities were measured: most layers first, the least mean rise first; the
    controls last."""
    found = []
    for row, group in study_groups(experiment):
        by_seed = [rises for each in group if (rises := profile_of(each))] if {*runs} & {*row.runs} else []
        if by_seed:
            answers = [answers_of(each) for each in group]
            found.append(Profile(row, _over_seeds(by_seed), _mean_answers(answers)))
    return sorted(
        found, key=lambda each: (each.row.control, -each.row.layers, each.row.stage == "recovered", each.mean["value"])
    )


def _over_seeds(by_seed: Sequence[dict[str, Rise]]) -> dict[str, Rise]:
    rises: dict[str, Any] = {name: [found.get(name) for found in by_seed] for name in by_seed[0]}
    means: dict[str, Any] = {name: mean_interval(each) for name, each in rises.items()}
    return {name: mean for name, mean in means.items() if mean}


def _mean_answers(several: Sequence[Answers]) -> Answers:
    return {
        ability: {
            key: statistics.fmean(answers[ability][key] for answers in several)
            for key in first
            if all(key in answers.get(ability, {}) for answers in several)
        }
        for ability, first in several[0].items()
    }


def profiles_csv(profiles: Sequence[Profile]) -> str:
    """Comma-separated values, one line for each model and ability; rises and intervals as shares."""
    out = io.StringIO()
    names = ("run", "method", "layers", "stage", "ability", "value", "low", "high", "requests")
    writer = csv.DictWriter(out, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for each in profiles:
        for ability, rise in each.rises.items():
            writer.writerow({**each.to_dict(), "ability": ability, **rise, "requests": len(each.answers[ability])})
    return out.getvalue().rstrip("\n")


def abilities_conclusion(profiles: Sequence[Profile]) -> str:
    """Which method keeps most at the depth with most methods, what others keep better, and what healing brings back.

    Only as far as intervals allow; empty if there are not two methods.
    """
    merged = [each for each in profiles if each.row.stage == "merged"]
    depths = [each.row.layers for each in merged]
    layers = max(depths, key=lambda depth: (depths.count(depth), -depth), default=0)
    alike = [each for each in merged if each.row.layers == layers]
    said = [_kept_best(alike), _kept_better(alike)] if len(alike) > 1 else []
    control = next((each for each in profiles if each.row.control), None)
    for before in alike:
        healed = (each for each in profiles if each.row.stage == "recovered" and before.row.run in each.row.runs)
        if after := next(healed, None):  # of the best method that was healed
            said.append(_brought_back(before, after, control))
            break
    return " ".join(filter(None, said))


def _kept_best(alike: Sequence[Profile]) -> str:
    first, second = alike[:2]
    better = [*rises_of(first.answers, second.answers).values()]
    layers, mean = first.row.layers, percent(first.mean)
    beside = f"{second.method} {_percent(second.mean)}"
    if better and mean_rise(better)["low"] > 0:
        average = f"on average over {len(first.rises)} abilities"
        return f"With {layers} layers, {first.method} keeps most: {mean} bits {average}; next is {beside}."
    return f"With {layers} layers, {first.method} ({mean} bits on average) and {beside} cannot be told apart."


def _kept_better(alike: Sequence[Profile]) -> str:
    """The abilities that another method keeps better than the best on average, each beside the others' chance."""
    first, *others = alike
    among = max(1, len(others) * len(first.rises))
    found: dict[str, tuple[float, Profile]] = {}
    for other in others:
        for ability, rise in rises_of(other.answers, first.answers, among).items():
            if rise["low"] > max(0.0, found.get(ability, (0.0,))[0]):
                found[ability] = rise["low"], other
    names = sorted(found, key=lambda ability: -found[ability][0])[:MOST_EXCEPTIONS]
    said = [
        f"{found[name][1].method} keeps {lower_title(name)} better ({_percent(found[name][1].rises[name])} instead of "
        f"{_percent(first.rises[name])})"
        for name in names
    ]
    return f"{'; '.join(said)}." if said else ""


def _brought_back(before: Profile, after: Profile, control: Profile | None) -> str:
    """From where to where healing takes the mean, and the abilities of which most and least comes back."""
    beside = f"; {ORIGINAL}, healed alike: {_percent(control.mean)}" if control else ""
    said = f"Healing takes {before.method} from {_percent(before.mean)} to {percent(after.mean)}{beside}."
    hurt = [name for name, rise in before.rises.items() if rise["low"] > 0 and name in after.rises]
    left = {name: after.rises[name]["value"] / before.rises[name]["value"] for name in hurt}
    if len(hurt) < 2:
        return said
    most, least = min(hurt, key=left.__getitem__), max(hurt, key=left.__getitem__)
    if (
        after.rises[most]["high"] / before.rises[most]["value"]
        >= after.rises[least]["low"] / before.rises[least]["value"]
    ):
        return said
    words = [
        f"{lower_title(name)} ({_percent(before.rises[name])} to {_percent(after.rises[name])})"
        for name in (most, least)
    ]
    return f"{said} Most comes back of {words[0]}, least of {words[1]}."


def _percent(rise: Rise) -> str:
    return f"{100 * rise['value']:+,.0f} %"
