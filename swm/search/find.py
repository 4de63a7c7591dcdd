"""Sliding-window search and the exact threshold path. Takes a scoring function; knows nothing about models.

Source: Sliding-Window Merging, arXiv:2502.19159, Fig. 2; `swm.search.walk` lists differences from the released code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from swm.plan import DEFAULT_RULE, MergePlan, Window
from swm.search.threshold_path import Branch, PlanAt, QuickScore, Score, ThresholdPath, next_branches, whole_range
from swm.search.walk import Position, Windows, check_range

Key = tuple[Windows, Window]
"""What `Score` takes: the windows merged above, and the window tried."""
ScoreApart = Callable[[list[Key]], list[float]]
"""`score_apart(keys)`: like `Score` for windows of several branches, which several processes share out."""
ScoreTogether = Callable[[Windows, list[Window]], list[float]]
"""`score_together(merged_above, windows)`: like `Score` for several windows, all below the merged ones."""


def find_plan(
    layer_count: int, score: Score, threshold: float, protect_last: int = 1, rule: str = DEFAULT_RULE
) -> MergePlan:
    """The plan that the sliding-window search gives at one threshold.

    Args:
        layer_count: layers of the original model.
        score: see `Score`; called once for each window tried.
        threshold: in (0, 1]; a window is accepted if its similarity is at least this.
        protect_last: number of top layers that are never merged.
        rule: recorded in the plan only; `score` must use the same rule.

    Raises:
        SettingsError: if the threshold is not in (0, 1]. PlanError: if a similarity is not a number.
    """
    return ThresholdPath(layer_count, rule, protect_last=protect_last).extend(threshold, score).plan


@dataclass(frozen=True)
class Batches:
    """Scores several windows at once, more than a walk turns out to need; at most `most`.

    Attributes:
        together: scores windows below the same merged ones: those waiting to be tried, and those that follow if each
            fails.
        apart: instead, scores windows that several branches wait for, then those that follow if these fail. What no
            walk needs is dropped at the end, but not from a search that was interrupted.
    """

    most: int
    together: ScoreTogether | None = None
    apart: ScoreApart | None = None


ONE_BY_ONE = Batches(1)


def threshold_path(
    layer_count: int,
    score: Score,
    low: float,
    high: float = 1.0,
    *,
    protect_last: int = 1,
    rule: str = DEFAULT_RULE,
    focus: float | None = None,
) -> ThresholdPath:
    """The exact plan for every threshold in [low, high]; computes each similarity once (800 for SmolLM2-135M from 0.5).

    Args:
        low, high: range of thresholds, in (0, 1].
        protect_last, rule: as of `find_plan`.
        focus: the threshold of most interest; its walk is computed first, then those of its neighbours.
    """
    check_range(low, high)
    return extended(ThresholdPath(layer_count, rule, low, high, protect_last), score, focus=focus)


def extended(
    path: ThresholdPath,
    score: Score,
    *,
    focus: float | None = None,
    layers: int | None = None,
    batches: Batches = ONE_BY_ONE,
    on_step: Callable[[ThresholdPath, float], None] | None = None,
) -> ThresholdPath:
    """The path, extended in place to its whole range; similarities that it has are not computed again.

    Args:
        focus: as of `threshold_path`.
        layers: compute only the plans that leave this many layers; a walk stops once it cannot leave that many.
        batches: what scores several windows at once.
        on_step: called after each batch of similarities with the path and the share of its range that is covered.
    """
    focus = path.high if focus is None else min(max(focus, path.low), path.high)
    branches = whole_range(path)
    covered = 0.0
    ahead: dict[Key, float | None] = {}  # scored before it was known whether they are needed; the bound known before
    while branches:
        position, a, b = branches.pop(_nearest(branches, focus))
        if position.at_bottom or not (layers is None or position.can_leave(layers, path.layer_count)):
            covered += b - a
            continue
        key = (position.committed, position.window)
        if not path.knows(*key):
            if batches.apart:
                keys = _waiting(path, position, branches, focus, batches.most, layers)
                ahead |= {other: path.similarities.get(other) for other in keys}
                similarities = batches.apart(keys)
            else:
                keys = _batch(path, position, branches, batches.most, layers) if batches.together else [key]
                similarities = _scored(keys, score, batches.together)
            for tried, similarity in zip(keys, similarities, strict=True):
                if tried == key or not math.isnan(similarity):  # one that is not needed must not end the search
                    path.keep(*tried, similarity)
            if on_step:
                on_step(path, covered / (path.high - path.low))
        ahead.pop(key, None)
        branches += next_branches(position, a, b, path.similarities[key])
    _forget(path, ahead)
    return path


def _scored(keys: list[Key], score: Score, score_together: ScoreTogether | None) -> list[float]:
    """Similarities of windows below the same merged ones."""
    if score_together and len(keys) > 1:
        return score_together(keys[0][0], [window for _, window in keys])
    return [score(*key) for key in keys]


def _forget(path: ThresholdPath, bounds: dict[Key, float | None]) -> None:
    """Drop similarities that no walk of the path needs; where a bound was known before, it comes back."""
    for key, bound in bounds.items():
        if bound is None:
            path.similarities.pop(key, None)
        else:
            path.similarities[key] = bound
            path.bounds.add(key)


def _batch(
    path: ThresholdPath, position: Position, branches: list[Branch], at_once: int, layers: int | None
) -> list[Key]:
    """The window to try, with others below the same merged ones: those waiting, and those that follow if each fails.

    Nine in ten windows fail, so few scores are wasted.
    """
    positions = [position, *(waiting for waiting, *_ in reversed(branches) if waiting.committed == position.committed)]
    while (position := position.rejected()).committed == positions[0].committed and not position.at_bottom:
        positions.append(position)
    positions = [place for place in positions if layers is None or place.can_leave(layers, path.layer_count)]
    keys = dict.fromkeys((place.committed, place.window) for place in positions if not place.at_bottom)
    return [key for key in keys if not path.knows(*key)][:at_once]


def _waiting(
    path: ThresholdPath, position: Position, branches: list[Branch], focus: float, most: int, layers: int | None
) -> list[Key]:
    """The window to try, those that other branches wait for, the nearest to the focus first, and those that follow on
    each branch if the ones before fail, as nine in ten do; at most so many."""
    nearest = sorted(range(len(branches)), key=lambda place: _far(branches, place, focus))
    positions = [position, *(branches[place][0] for place in nearest)]
    keys: dict[Key, None] = {}
    while positions and len(keys) < most:
        positions = [place for place in positions if not place.at_bottom]
        positions = [place for place in positions if layers is None or place.can_leave(layers, path.layer_count)]
        keys |= {(place.committed, place.window): None for place in positions}
        keys = {key: None for key in keys if not path.knows(*key)}
        positions = [place.rejected() for place in positions]
    return list(keys)[:most]


def confirmed_plan(
    path: ThresholdPath,
    threshold: float,
    score: QuickScore,
    exact_score: Score,
    on_step: Callable[[int], None] | None = None,
) -> PlanAt:
    """The exact plan at one threshold, found with a fast but approximate `score`.

    Rescores exactly every window whose similarity is so close to the threshold that the exact value could fall on the
    other side, and the last accepted window, whose similarity is the plan's. Stores the exact values in the path.
    """
    while True:
        step = path.extend_quickly(threshold, score, on_step, margin=path.doubt)
        if not (unsure := path.unsure_trials(step)):
            return step
        for key in unsure:
            approximate = score(*key, -1.0) if key in path.bounds else path.similarities[key]
            path.keep(*key, exact_score(*key), sure=True)
            path.difference = max(path.difference, abs(path.similarities[key] - approximate))


def _nearest(branches: list[Branch], focus: float) -> int:
    """Index of the branch whose interval (a, b] contains the focus or is closest to it; the latest among equals."""
    return min(range(len(branches)), key=lambda place: _far(branches, place, focus))


def _far(branches: list[Branch], place: int, focus: float) -> tuple[bool, float, int]:
    """How far the focus is from a branch's interval; earlier branches count as farther."""
    _, a, b = branches[place]
    return not a < focus <= b, min(abs(focus - a), abs(focus - b)), -place
