"""The exact threshold path: every plan for every threshold, as the table of similarities that the walks need.

The plan is a piecewise-constant function of the threshold, and the similarities of the windows tried are all that has
to be kept: any plan is one walk through that table. Refuses a similarity that is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from swm.errors import PlanError
from swm.plan import DEFAULT_RULE, MergePlan, Window
from swm.search.walk import Position, Trial, Walk, Windows, check_threshold, start, walk_at

SEARCH_VERSION = 2  # raised when similarities of a release may have been wrong: paths kept before are computed anew
DOUBT = 0.002  # in bfloat16: a similarity that is nearer to a threshold than this is made sure of; see LOG.md
Score = Callable[[Windows, Window], float]
"""`score(merged_above, window)`: similarity to the original of the model in which `merged_above` (lowest first) and
`window` are merged and everything below is untouched."""
QuickScore = Callable[[Windows, Window, float], float]
"""`score(merged_above, window, needed)`: the same; below `needed` it may be any bound that the similarity is under."""
Branch = tuple[Position, float, float]
"""Where all walks stand whose threshold lies in (the first number, the second]."""


@dataclass(frozen=True)
class PlanAt:
    """The plan at one threshold, and the interval of thresholds (`low`, `high`] that give the same walk."""

    plan: MergePlan
    threshold: float
    low: float
    high: float
    similarity: float
    trace: tuple[Trial, ...]
    perplexity: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON, with its threshold, interval, similarity and perplexity."""
        return {
            **self.plan.to_dict(),
            "threshold": self.threshold,
            "valid_for": [self.low, self.high],
            "similarity": self.similarity,
            "perplexity": self.perplexity,
        }


@dataclass
class ThresholdPath:
    """Every plan for every threshold in [low, high], as the table of similarities that the walks need.

    `similarities` maps (windows merged above, window tried) to the similarity. It may be incomplete while the search
    runs: `plan_at` then gives None where the walk needs a similarity that is not there yet. Those in `bounds` are upper
    bounds, enough for thresholds above them. `scoring` is "exact", or the faster number format that the similarities
    were computed in; those in `sure` are exact all the same, and `difference` is the largest one seen between the two.
    `perplexities` are those of plans on the calibration text, as far as they have been measured. `layer_runs` is what
    it cost: how many times a layer was run for all calibration texts. `version` is that of the search which
    computed the similarities, `text_hash` that of the calibration text (see `texts.text_hash`).
    """

    layer_count: int
    rule: str = DEFAULT_RULE
    low: float = 0.5
    high: float = 1.0
    protect_last: int = 1
    similarities: dict[tuple[Windows, Window], float] = field(default_factory=dict)
    bounds: set[tuple[Windows, Window]] = field(default_factory=set)
    scoring: str = "exact"
    sure: set[tuple[Windows, Window]] = field(default_factory=set)
    difference: float = 0.0
    perplexities: dict[Windows, float] = field(default_factory=dict)
    layer_runs: float = 0.0
    version: int = SEARCH_VERSION
    text_hash: str = ""

    def plan_at(self, threshold: float) -> PlanAt | None:
        """Plan, interval and trace at `threshold`; None if a similarity on its way has not been computed.

        Raises:
            SettingsError: if the threshold is not in (0, 1].
        """
        check_threshold(threshold)
        walk = self._walk(threshold)
        if not walk.complete:
            return None
        trace = tuple(replace(t, at_most=(t.committed, t.window) in self.bounds) for t in walk.trace)
        plan = MergePlan(self.layer_count, walk.position.final_windows(), self.rule)
        accepted = [trial.similarity for trial in walk.trace if trial.accepted]
        similarity = accepted[-1] if accepted else 1.0
        low, high = max(walk.low, 0.0), min(walk.high, 1.0)
        return PlanAt(plan, threshold, low, high, similarity, trace, self.perplexities.get(plan.windows))

    def intervals(self) -> list[PlanAt]:
        """The computed part of the path, from the highest threshold down: one entry for each different walk."""
        found, threshold = [], self.high
        while threshold >= self.low:
            if (step := self.plan_at(threshold)) is not None:
                found.append(step)
            threshold = self._walk(threshold).low
        return found

    def plan_with_layers(self, layers: int) -> PlanAt:
        """The plan with `layers` layers left.

        Of several the one of lowest perplexity on the calibration text; where that is not measured, the most similar.

        Raises:
            PlanError: if no threshold computed so far leaves so many; the message names the nearest depths of those
                that are.
        """
        steps = self.intervals()
        fitting = [step for step in steps if step.plan.layers_left == layers]
        if fitting:
            known = [step for step in fitting if step.perplexity is not None]
            if len(known) == len(fitting):
                return min(known, key=lambda step: step.perplexity or 0.0)
            return max(fitting, key=lambda step: step.similarity)
        depths = sorted({step.plan.layers_left for step in steps})
        below = max((depth for depth in depths if depth < layers), default=None)
        above = min((depth for depth in depths if depth > layers), default=None)
        near = " and ".join(str(depth) for depth in (below, above) if depth is not None)
        nearest = f"The nearest depths {'' if self.covered() > 0.999 else 'found so far '}are {near}. " if near else ""
        raise PlanError(
            f"No threshold from {self.low:g} to {self.high:g} leaves exactly {layers} layers with rule {self.rule}. "
            f"{nearest}Choose another depth, search from a lower threshold, or name windows."
        )

    def knows_all_with(self, layers: int) -> bool:
        """Whether every plan with so many layers is computed."""
        branches = whole_range(self)
        while branches:
            position, a, b = branches.pop()
            if position.at_bottom or not position.can_leave(layers, self.layer_count):
                continue
            if not self.knows(position.committed, position.window):
                return False
            branches += next_branches(position, a, b, self.similarities[position.committed, position.window])
        return True

    def extend(self, threshold: float, score: Score, on_step: Callable[[int], None] | None = None) -> PlanAt:
        """Compute what the walk at one threshold still needs, and give its plan.

        Raises:
            SettingsError: if the threshold is not in (0, 1]. PlanError: if a similarity is not a number.
        """
        return self._extend(threshold, lambda above, window: self.keep(above, window, score(above, window)), on_step)

    def extend_quickly(
        self,
        threshold: float,
        score: QuickScore,
        on_step: Callable[[int], None] | None = None,
        margin: float = 0.0,
    ) -> PlanAt:
        """As `extend`; of windows that fail by more than `margin` only a bound is kept, which is sooner known."""
        needed = threshold - margin

        def known(above: Windows, window: Window) -> float:
            found = self.keep(above, window, score(above, window, needed))
            if found < needed:
                self.bounds.add((above, window))
            return found

        return self._extend(threshold, known, on_step)

    def keep(self, above: Windows, window: Window, similarity: float, sure: bool = False) -> float:
        """Put the similarity of a window in the table, all texts run; `sure` in the model's own format.

        Raises:
            PlanError: if it is not a number.
        """
        self.similarities[above, window] = _checked(similarity, window)
        self.bounds.discard((above, window))
        if sure:
            self.sure.add((above, window))
        return similarity

    def is_exact(self, plan: MergePlan) -> bool:
        """Whether the similarity of a plan is known in the model's own format."""
        if not plan.windows:
            return True
        key = (plan.windows[1:], plan.windows[0])
        return self.knows(*key) and (self.scoring == "exact" or key in self.sure)

    @property
    def doubt(self) -> float:
        """How far a similarity can be from the exact one: 0 where they are exact."""
        return 0.0 if self.scoring == "exact" else max(DOUBT, 5 * self.difference)

    def unsure_trials(self, step: PlanAt) -> list[tuple[Windows, Window]]:
        """The windows on a plan's way whose exact similarity could lie on the threshold's other side, and the last one
        accepted, whose similarity is the plan's."""
        if self.scoring == "exact":
            return []
        last = next((trial for trial in reversed(step.trace) if trial.accepted), None)
        near = [t for t in step.trace if t is last or abs(t.similarity - step.threshold) <= self.doubt]
        keys = [(trial.committed, trial.window) for trial in near]
        return [key for key in keys if key not in self.sure]

    def knows(self, above: Windows, window: Window) -> bool:
        """Whether the exact similarity of a window is in the table."""
        return (above, window) in self.similarities and (above, window) not in self.bounds

    def _extend(self, threshold: float, score: Score, on_step: Callable[[int], None] | None) -> PlanAt:
        check_threshold(threshold)

        def similarity(above: Windows, window: Window) -> float:
            known = self._known(above, window, threshold)
            if known is None:
                known = score(above, window)
                if on_step:
                    on_step(self.layer_count - 1 - window.first)
            return known

        walk_at(self.layer_count, self.protect_last, threshold, similarity)
        step = self.plan_at(threshold)
        assert step is not None
        return step

    def _walk(self, threshold: float) -> Walk:
        known = self._known
        return walk_at(
            self.layer_count, self.protect_last, threshold, lambda above, window: known(above, window, threshold)
        )

    def _known(self, above: Windows, window: Window, threshold: float) -> float | None:
        similarity = self.similarities.get((above, window))
        if similarity is not None and (above, window) in self.bounds and similarity >= threshold:
            return None
        return similarity

    def covered(self) -> float:
        """Share of [low, high] for which the plan is known, 0 to 1."""
        if self.high <= self.low:  # as a damaged file may say
            return 0.0
        known = sum(min(step.high, self.high) - max(step.low, self.low) for step in self.intervals())
        return known / (self.high - self.low)


def whole_range(path: ThresholdPath) -> list[Branch]:
    """The one branch that all walks of the path start on."""
    return [(start(path.layer_count, path.protect_last), math.nextafter(path.low, 0.0), path.high)]


def next_branches(position: Position, a: float, b: float, similarity: float) -> list[Branch]:
    """Where the walks for thresholds in (a, b] go on."""
    found = []
    if similarity > a:
        found.append((position.accepted(), a, min(b, similarity)))
    if similarity < b:
        found.append((position.rejected(), max(a, similarity), b))
    return found


def _checked(similarity: float, window: Window) -> float:
    if math.isnan(similarity):
        raise PlanError(
            f"With layers {window} merged the model's output is not a number. Its weights overflow in this number "
            "format: create the experiment again with --dtype float32."
        )
    return similarity


def known_similarity(path: ThresholdPath, plan: MergePlan) -> float | None:
    """The similarity of a plan, however it came about, if it has been computed."""
    if not plan.windows:
        return 1.0
    key = (plan.windows[1:], plan.windows[0])
    return None if key in path.bounds else path.similarities.get(key)
