"""Sliding-window search and the exact threshold path. Takes a scoring function, knows no model.

Source: Sliding-Window Merging, arXiv:2502.19159, Fig. 2; see `swm.search.walk` for what differs from the released code.
"""

from __future__ import annotations

from collections.abc import Callable

from swm.plan import DEFAULT_RULE, MergePlan, Window
from swm.search.threshold_path import Branch, PlanAt, QuickScore, Score, ThresholdPath, next_branches, whole_range
from swm.search.walk import Position, Windows, check_range

ScoreTogether = Callable[[Windows, list[Window]], list[float]]
"""`score_together(merged_above, windows)`: the same for several windows, none of them above a merged one."""


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
    branches = whole_range(path)
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
        branches += next_branches(position, a, b, path.similarities[key])
    return path


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


def confirmed_plan(
    path: ThresholdPath,
    threshold: float,
    score: QuickScore,
    exact_score: Score,
    on_step: Callable[[int], None] | None = None,
) -> PlanAt:
    """The plan at one threshold, when `score` is fast and only nearly right.

    Every window whose similarity lies so near to the threshold that the exact one could fall on its other side is
    scored exactly, and so is the last one accepted, whose similarity is the plan's. They are put in the path.
    """
    while True:
        step = path.extend_quickly(threshold, score, on_step, margin=path.doubt)
        if not (left := path.unsure_trials(step)):
            return step
        for key in left:
            nearly = score(*key, -1.0) if key in path.bounds else path.similarities[key]
            path.keep(*key, exact_score(*key), sure=True)
            path.difference = max(path.difference, abs(path.similarities[key] - nearly))


def _nearest(branches: list[Branch], focus: float) -> int:
    """Index of the branch whose interval (a, b] holds the focus, else lies next to it; the latest of equals."""

    def distance(i: int) -> tuple[bool, float, int]:
        _, a, b = branches[i]
        return not a < focus <= b, min(abs(focus - a), abs(focus - b)), -i

    return min(range(len(branches)), key=distance)
