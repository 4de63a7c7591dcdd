"""The exact threshold path: every plan for every threshold, as the table of similarities that the walks need.

The plan is a piecewise-constant function of the threshold, so storing the similarities of the windows tried is enough:
every plan is one walk through that table. Refuses similarities that are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from swm.errors import PlanError
from swm.plan import DEFAULT_RULE, MergePlan, Window
from swm.search.walk import Position, Trial, Walk, Windows, check_threshold, start, walk_at

SEARCH_VERSION = 2  # raised when a release may have computed wrong similarities: older paths are then recomputed
DOUBT = 0.002  # bfloat16 similarities closer to a threshold than this are recomputed exactly; see LOG.md
Score = Callable[[Windows, Window], float]
"""`score(merged_above, window)`: similarity to the original of the model in which `merged_above` (lowest first) and
`window` are merged and everything below is unchanged."""
QuickScore = Callable[[Windows, Window, float], float]
"""`score(merged_above, window, needed)`: the same, but a result below `needed` may be any upper bound."""
Branch = tuple[Position, float, float]
"""(position, a, b): the position that all walks with a threshold in (a, b] have reached."""


@dataclass(frozen=True)
class PlanAt:
    """The plan at one threshold, and the interval (`low`, `high`] of thresholds with the same walk."""

    plan: MergePlan
    threshold: float
    low: float
    high: float
    similarity: float
    trace: tuple[Trial, ...]
    perplexity: float | None = None

    @property
    def inside(self) -> float:
        """A threshold of the same walk, short and away from the interval's ends: those are similarities, and computed
        again they differ a little."""
        middle, far = (self.low + self.high) / 2, (self.high - self.low) / 4
        rounded = (round(middle, digits) for digits in range(1, 16))
        return next((short for short in rounded if abs(short - middle) <= far), middle)

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

    While the search runs the table may be incomplete; `plan_at` then gives None if the walk needs a missing similarity.

    Attributes:
        low, high: range of thresholds that the path is for.
        protect_last: number of top layers that are never merged.
        similarities: (windows merged above, window tried) -> similarity.
        bounds: keys whose similarity is only an upper bound, which is enough for thresholds above it.
        scoring: "exact", or the faster precision (dtype) that the similarities were computed in.
        sure: keys whose similarity is exact even if `scoring` is not.
        difference: largest difference seen between the exact and the faster similarity of a window.
        perplexities: of plans on the calibration text, as far as measured.
        layer_runs: cost of the path: number of layer runs over all calibration texts.
        version: version of the search that computed the similarities.
        text_hash: hash of the calibration text (see `texts.text_hash`).
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

    @property
    def is_complete(self) -> bool:
        """Whether every plan of its range is known, with its perplexity."""
        return self.covered() > 0.999 and all(step.perplexity is not None for step in self.intervals())

    def plan_at(self, threshold: float) -> PlanAt | None:
        """Plan, interval and trace at `threshold`; None if the walk needs a similarity not computed yet.

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
        """The computed part of the path, from the highest threshold down: one entry for each distinct walk."""
        steps, threshold = [], self.high
        while threshold >= self.low:
            if (step := self.plan_at(threshold)) is not None:
                steps.append(step)
            threshold = self._walk(threshold).low
        return steps

    def plan_with_layers(self, layers: int) -> PlanAt:
        """The plan with `layers` layers left.

        Among several, the one with the lowest perplexity on the calibration text, or the most similar one if not all
        perplexities are measured.

        Raises:
            PlanError: if no threshold computed so far leaves that many; the message names the nearest depths.
        """
        steps = self.intervals()
        fitting = [step for step in steps if step.plan.layers_left == layers]
        if fitting:
            measured = [step for step in fitting if step.perplexity is not None]
            if len(measured) == len(fitting):
                return min(measured, key=lambda step: step.perplexity or 0.0)
            return max(fitting, key=lambda step: step.similarity)
        depths = sorted({step.plan.layers_left for step in steps})
        below = max((depth for depth in depths if depth < layers), default=None)
        above = min((depth for depth in depths if depth > layers), default=None)
        near = " and ".join(str(depth) for depth in (below, above) if depth is not None)
        nearest = f"The nearest depths {'' if self.covered() > 0.999 else 'found so far '}are {near}. " if near else ""
        raise PlanError(
            f"No threshold from {self.low:g} to {self.high:g} leaves exactly {layers} layers with rule {self.rule}. "
            f"{nearest}Choose another depth, search from a lower threshold, or specify windows."
        )

    def smallest_within(self, factor: float) -> PlanAt | None:
        """The plan with the fewest layers, then the lowest perplexity, among those measured to have at most `factor`
        times the original's perplexity; None if there is none, or the original was not measured."""
        most = factor * self.perplexities.get((), 0.0)
        fitting = [s for s in self.intervals() if s.plan.windows and s.perplexity and s.perplexity <= most]
        return min(fitting, key=lambda s: (s.plan.layers_left, s.perplexity or 0.0), default=None)

    def knows_all_with(self, layers: int) -> bool:
        """Whether every plan that leaves `layers` layers is computed."""
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
        """The plan at one threshold; computes the similarities that its walk still needs.

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
        """As `extend`, but stores only an upper bound for windows that fail by more than `margin`, which is faster."""
        needed = threshold - margin

        def scored(above: Windows, window: Window) -> float:
            similarity = self.keep(above, window, score(above, window, needed))
            if similarity < needed:
                self.bounds.add((above, window))
            return similarity

        return self._extend(threshold, scored, on_step)

    def keep(self, above: Windows, window: Window, similarity: float, sure: bool = False) -> float:
        """The similarity of a window over all texts, now stored; `sure` if computed in the model's own precision.

        Raises:
            PlanError: if the similarity is NaN.
        """
        self.similarities[above, window] = _checked(similarity, window)
        self.bounds.discard((above, window))
        if sure:
            self.sure.add((above, window))
        return similarity

    def is_exact(self, plan: MergePlan) -> bool:
        """Whether the similarity of a plan is known in the model's own precision."""
        if not plan.windows:
            return True
        key = (plan.windows[1:], plan.windows[0])
        return self.knows(*key) and (self.scoring == "exact" or key in self.sure)

    @property
    def doubt(self) -> float:
        """How far a similarity can be from the exact one; 0 if all are exact."""
        return 0.0 if self.scoring == "exact" else max(DOUBT, 5 * self.difference)

    def unsure_trials(self, step: PlanAt) -> list[tuple[Windows, Window]]:
        """The windows in a plan's trace that need an exact similarity: those whose exact value could fall on the other
        side of the threshold, and the last accepted one, whose similarity is the plan's."""
        if self.scoring == "exact":
            return []
        last = next((trial for trial in reversed(step.trace) if trial.accepted), None)
        near = [t for t in step.trace if t is last or abs(t.similarity - step.threshold) <= self.doubt]
        keys = [(trial.committed, trial.window) for trial in near]
        return [key for key in keys if key not in self.sure]

    def knows(self, above: Windows, window: Window) -> bool:
        """Whether the table has the similarity of a window, not only a bound."""
        return (above, window) in self.similarities and (above, window) not in self.bounds

    def _extend(self, threshold: float, score: Score, on_step: Callable[[int], None] | None) -> PlanAt:
        check_threshold(threshold)

        def similarity_of(above: Windows, window: Window) -> float:
            similarity = self._stored(above, window, threshold)
            if similarity is None:
                similarity = score(above, window)
                if on_step:
                    on_step(self.layer_count - 1 - window.first)
            return similarity

        walk_at(self.layer_count, self.protect_last, threshold, similarity_of)
        step = self.plan_at(threshold)
        assert step is not None
        return step

    def _walk(self, threshold: float) -> Walk:
        stored = self._stored
        return walk_at(
            self.layer_count, self.protect_last, threshold, lambda above, window: stored(above, window, threshold)
        )

    def _stored(self, above: Windows, window: Window, threshold: float) -> float | None:
        """The stored similarity; None if there is none, or only a bound that does not decide this threshold."""
        similarity = self.similarities.get((above, window))
        if similarity is not None and (above, window) in self.bounds and similarity >= threshold:
            return None
        return similarity

    def covered(self) -> float:
        """Share of [low, high] for which the plan is known, 0 to 1."""
        if self.high <= self.low:  # only in a damaged file
            return 0.0
        covered = sum(min(step.high, self.high) - max(step.low, self.low) for step in self.intervals())
        return covered / (self.high - self.low)


def whole_range(path: ThresholdPath) -> list[Branch]:
    """The branch on which all walks of the path start."""
    return [(start(path.layer_count, path.protect_last), math.nextafter(path.low, 0.0), path.high)]


def next_branches(position: Position, a: float, b: float, similarity: float) -> list[Branch]:
    """The branches on which walks with thresholds in (a, b] continue: window accepted, window rejected."""
    branches = []
    if similarity > a:
        branches.append((position.accepted(), a, min(b, similarity)))
    if similarity < b:
        branches.append((position.rejected(), max(a, similarity), b))
    return branches


def _checked(similarity: float, window: Window) -> float:
    if math.isnan(similarity):
        raise PlanError(
            f"With layers {window} merged, the model's output is not a number (NaN): its weights overflow in this "
            "precision. Create the experiment again with --dtype float32."
        )
    return similarity


def known_similarity(path: ThresholdPath, plan: MergePlan) -> float | None:
    """The similarity of a plan, from the search or otherwise; None if the path lacks it or has only a bound."""
    if not plan.windows:
        return 1.0
    key = (plan.windows[1:], plan.windows[0])
    return None if key in path.bounds else path.similarities.get(key)
