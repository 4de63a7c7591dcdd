"""Sliding-window search and the exact threshold path. Takes a scoring function, knows no model.

The search walks from the top layer down. A position of the walk is the windows committed so far and the window being
tried; whether that window is accepted depends on the threshold T only through `similarity >= T`. So the plan is a
piecewise-constant function of T, and the similarities of the windows tried are all that has to be kept: any plan is
one walk through that table.

Source: Sliding-Window Merging, arXiv:2502.19159, Fig. 2. Differs from the released code, on purpose: accepts at
equality, commits a window that is still open at the bottom, never tries a window of one layer, refuses NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from swm.errors import PlanError, SettingsError
from swm.plan import DEFAULT_RULE, MergePlan, Window, check_rule

Windows = tuple[Window, ...]
Score = Callable[[Windows, Window], float]
"""`score(merged_above, window)`: similarity to the original of the model in which `merged_above` (lowest first) and
`window` are merged and everything below is untouched."""
QuickScore = Callable[[Windows, Window, float], float]
"""`score(merged_above, window, needed)`: the same; below `needed` it may be any bound that the similarity is under."""
ScoreTogether = Callable[[Windows, list[Window]], list[float]]
"""`score_together(merged_above, windows)`: the same for several windows, none of them above a merged one."""

DOUBT = 0.002  # a window that fails by less is scored in full when the score is only nearly right


@dataclass(frozen=True)
class Position:
    """Where the walk stands: windows committed so far (lowest first), and the window low..high to try next."""

    committed: Windows
    high: int
    low: int

    @property
    def window(self) -> Window:
        return Window(self.low, self.high)

    @property
    def at_bottom(self) -> bool:
        return self.low < 0

    def can_leave(self, layers: int, layer_count: int) -> bool:
        """Whether the walk can still end with so many layers: what it accepted merges, what is below may."""
        most = layer_count - sum(len(window) - 1 for window in self.committed) - (self.high - self.low - 1)
        return most - (self.low + 1) <= layers <= most

    def accepted(self) -> Position:
        """The window grows downward by one layer."""
        return Position(self.committed, self.high, self.low - 1)

    def rejected(self) -> Position:
        """What was accepted so far is committed, if it is two layers or more; the layer that failed starts anew."""
        return Position(self._with_pending(), self.low, self.low - 1)

    def _with_pending(self) -> Windows:
        pending = Window(self.low + 1, self.high)
        return (pending, *self.committed) if len(pending) >= 2 else self.committed

    def final_windows(self) -> Windows:
        """The plan's windows once the bottom is reached; a window still open there is committed."""
        return self._with_pending()


Branch = tuple[Position, float, float]
"""Where all walks stand whose threshold lies in (the first number, the second]."""


@dataclass(frozen=True)
class Trial:
    """One window tried: its similarity, and what the threshold made of it.

    With `at_most` the similarity is that or lower: it was clear that the window fails before all texts were run.
    """

    window: Window
    similarity: float
    accepted: bool
    committed: Windows = ()
    at_most: bool = False


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
    bounds, enough for thresholds above them. `scoring` is "exact", or
    the faster number format that the similarities were computed in; `difference` is then the largest one seen between
    the two. `perplexities` are those of plans on the calibration text, as far as they have been measured. `layer_runs`
    is what it cost: how many times a layer was run for all calibration texts.
    """

    layer_count: int
    rule: str = DEFAULT_RULE
    low: float = 0.5
    high: float = 1.0
    protect_last: int = 1
    similarities: dict[tuple[Windows, Window], float] = field(default_factory=dict)
    bounds: set[tuple[Windows, Window]] = field(default_factory=set)
    scoring: str = "exact"
    difference: float = 0.0
    perplexities: dict[Windows, float] = field(default_factory=dict)
    layer_runs: float = 0.0

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
        branches = _whole_range(self)
        while branches:
            position, a, b = branches.pop()
            if position.at_bottom or not position.can_leave(layers, self.layer_count):
                continue
            if not self.knows(position.committed, position.window):
                return False
            branches += _next_branches(position, a, b, self.similarities[position.committed, position.window])
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

    def keep(self, above: Windows, window: Window, similarity: float) -> float:
        """Put the exact similarity of a window in the table.

        Raises:
            PlanError: if it is not a number.
        """
        self.similarities[above, window] = _checked(similarity, window)
        self.bounds.discard((above, window))
        return similarity

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

        _walk(self.layer_count, self.protect_last, threshold, similarity)
        step = self.plan_at(threshold)
        assert step is not None
        return step

    def _walk(self, threshold: float) -> _Walk:
        known = self._known
        return _walk(
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

    def to_dict(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "layer_count": self.layer_count,
            "low": self.low,
            "high": self.high,
            "protect_last": self.protect_last,
            "perplexities": [
                {"windows": [[w.first, w.last] for w in windows], "perplexity": value}
                for windows, value in self.perplexities.items()
            ],
            "scoring": self.scoring,
            "layer_runs": round(self.layer_runs, 1),
            "difference": self.difference,
            "similarities": [
                {
                    "above": [[w.first, w.last] for w in above],
                    "window": [window.first, window.last],
                    "similarity": value,
                    **({"at_most": True} if (above, window) in self.bounds else {}),
                }
                for (above, window), value in self.similarities.items()
            ],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ThresholdPath:
        low, high, protected = float(data["low"]), float(data["high"]), int(data["protect_last"])
        path = cls(int(data["layer_count"]), str(data["rule"]), low, high, protected)
        path.scoring, path.difference = str(data.get("scoring", "exact")), float(data.get("difference", 0.0))
        path.layer_runs = float(data.get("layer_runs", 0.0))
        check_rule(path.rule)
        for row in data.get("perplexities", []):
            path.perplexities[tuple(Window(*pair) for pair in row["windows"])] = float(row["perplexity"])
        for row in data["similarities"]:
            above = tuple(Window(*pair) for pair in row["above"])
            path.similarities[above, Window(*row["window"])] = float(row["similarity"])
            if row.get("at_most"):
                path.bounds.add((above, Window(*row["window"])))
        return path


def find_plan(
    layer_count: int, score: Score, threshold: float, protect_last: int = 1, rule: str = DEFAULT_RULE
) -> MergePlan:
    """The plan of the sliding-window search at one threshold.

    Args:
        layer_count: layers of the original model.
        score: see `Score`; called once for each window tried.
        threshold: in (0, 1]; a window is accepted while its similarity is at least this.
        protect_last: so many of the top layers are never merged.
        rule: only written into the plan; `score` has to use the same.

    Raises:
        SettingsError: if the threshold is not in (0, 1]. PlanError: if a similarity is not a number.
    """
    return ThresholdPath(layer_count, rule, protect_last=protect_last).extend(threshold, score).plan


def threshold_path(
    layer_count: int,
    score: Score,
    low: float,
    high: float = 1.0,
    *,
    protect_last: int = 1,
    rule: str = DEFAULT_RULE,
    focus: float | None = None,
    path: ThresholdPath | None = None,
    on_step: Callable[[ThresholdPath, float], None] | None = None,
    score_together: ScoreTogether | None = None,
    at_once: int = 1,
    layers: int | None = None,
) -> ThresholdPath:
    """Every plan for every threshold in [low, high], exactly; each similarity is computed once.

    Args:
        low, high: ends of the thresholds of interest, in (0, 1]; of a new path, the one given has its own.
        focus: the threshold somebody looks at; the walk at this threshold comes first, then its neighbours.
        path: an unfinished path to go on from; its similarities are not computed again. It is extended in place.
        on_step: called after each batch of similarities with the path and the share of [low, high] that is covered.
        score_together, at_once: windows that wait to be tried below the same merged ones are scored together, so many
            at most, and those that come next if they fail; a few are then scored that the path does not need.
        layers: only the plans that leave so many are wanted: a walk ends where it can leave no longer so many.

    Cost: one call of `score` for each branch of the walk (SmolLM2-135M from 0.5: some 800).
    """
    check_range(low, high)
    path = path or ThresholdPath(layer_count, rule, low, high, protect_last)
    focus = high if focus is None else min(max(focus, low), high)
    branches = _whole_range(path)
    covered = 0.0
    while branches:
        position, a, b = branches.pop(_nearest(branches, focus))
        if position.at_bottom or not (layers is None or position.can_leave(layers, layer_count)):
            covered += b - a
            continue
        key = (position.committed, position.window)
        if not path.knows(*key):
            windows = _batch(path, position, branches, at_once, layers) if score_together else []
            if score_together and len(windows) > 1:
                for window, similarity in zip(windows, score_together(position.committed, windows), strict=True):
                    path.keep(position.committed, window, similarity)
            else:
                path.keep(*key, score(*key))
            if on_step:
                on_step(path, covered / (path.high - path.low))
        branches += _next_branches(position, a, b, path.similarities[key])
    return path


def _whole_range(path: ThresholdPath) -> list[Branch]:
    return [(_start(path.layer_count, path.protect_last), math.nextafter(path.low, 0.0), path.high)]


def _next_branches(position: Position, a: float, b: float, similarity: float) -> list[Branch]:
    """Where the walks for thresholds in (a, b] go on."""
    found = []
    if similarity > a:
        found.append((position.accepted(), a, min(b, similarity)))
    if similarity < b:
        found.append((position.rejected(), max(a, similarity), b))
    return found


def _batch(
    path: ThresholdPath, position: Position, branches: list[Branch], at_once: int, layers: int | None
) -> list[Window]:
    """The window to try and others below the same merged ones: those that wait, and those next if each one fails.

    Nine of ten windows fail, so few are scored in vain.
    """
    wanted = [position, *(waiting for waiting, *_ in reversed(branches) if waiting.committed == position.committed)]
    while (position := position.rejected()).committed == wanted[0].committed and not position.at_bottom:
        wanted.append(position)
    wanted = [one for one in wanted if layers is None or one.can_leave(layers, path.layer_count)]
    windows = dict.fromkeys(one.window for one in wanted if not one.at_bottom)
    return [window for window in windows if not path.knows(wanted[0].committed, window)][:at_once]


def settle(
    path: ThresholdPath,
    threshold: float,
    score: QuickScore,
    exact_score: Score,
    on_step: Callable[[int], None] | None = None,
    nearest: int = 2,
) -> PlanAt:
    """The plan at one threshold, when `score` is fast and only nearly right.

    The windows whose similarity lies nearest to the threshold are scored exactly, and then every other one that lies
    within five times the largest difference seen: no decision rests on a similarity that could fall on the other side.
    The exact similarities take their places in the path.
    """
    checked: set[tuple[Windows, Window]] = set()
    while True:
        step = path.extend_quickly(threshold, score, on_step, margin=DOUBT)
        trials = sorted(step.trace, key=lambda trial: (trial.at_most, abs(trial.similarity - threshold)))
        doubtful = [
            (trial.committed, trial.window)
            for place, trial in enumerate(trials)
            if place < nearest or abs(trial.similarity - threshold) <= 5 * path.difference
        ]
        if not (left := [key for key in doubtful if key not in checked]):
            return step
        for key in left:
            nearly = score(*key, -1.0) if key in path.bounds else path.similarities[key]
            path.keep(*key, exact_score(*key))
            path.difference = max(path.difference, abs(path.similarities[key] - nearly))
            checked.add(key)


def check_threshold(threshold: float) -> None:
    """Raise SettingsError unless `threshold` is a number in (0, 1]."""
    if not 0 < threshold <= 1:  # also false for NaN
        raise SettingsError(f"Threshold {threshold} is not a similarity. Choose a number above 0 and at most 1.")


def check_range(low: float, high: float = 1.0) -> None:
    """Raise SettingsError unless low < high, both in (0, 1]."""
    check_threshold(low)
    check_threshold(high)
    if low >= high:
        raise SettingsError(f"The path needs a range: --from {low:g} has to be below {high:g}.")


@dataclass
class _Walk:
    """One walk: where it stands, and the thresholds (`low`, `high`] that would have come the same way."""

    position: Position
    low: float = -math.inf
    high: float = math.inf
    trace: list[Trial] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.position.at_bottom


def _walk(
    layer_count: int, protect_last: int, threshold: float, similarity_of: Callable[[Windows, Window], float | None]
) -> _Walk:
    """Walk from the top to the bottom, or to the first similarity that is None."""
    walk = _Walk(_start(layer_count, protect_last))
    while not walk.complete:
        position = walk.position
        similarity = similarity_of(position.committed, position.window)
        if similarity is None:
            break
        accepted = similarity >= threshold
        walk.trace.append(Trial(position.window, similarity, accepted, position.committed))
        if accepted:
            walk.high = min(walk.high, similarity)
            walk.position = position.accepted()
        else:
            walk.low = max(walk.low, similarity)
            walk.position = position.rejected()
    return walk


def _start(layer_count: int, protect_last: int) -> Position:
    high = layer_count - 1 - protect_last
    return Position((), high, high - 1)


def _checked(similarity: float, window: Window) -> float:
    if math.isnan(similarity):
        raise PlanError(
            f"With layers {window} merged the model's output is not a number. Its weights overflow in this number "
            "format: create the experiment again with --dtype float32."
        )
    return similarity


def _nearest(branches: list[Branch], focus: float) -> int:
    """Index of the branch whose interval (a, b] holds the focus, else lies next to it; the latest of equals."""

    def distance(i: int) -> tuple[float, int]:
        _, a, b = branches[i]
        return (0.0 if a < focus <= b else min(abs(focus - a), abs(focus - b))), -i

    return min(range(len(branches)), key=distance)
