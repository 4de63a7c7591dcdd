"""LaCo, arXiv:2402.11187: merges windows of a fixed size from the top while the final hidden state stays similar."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from swm.errors import PlanError
from swm.plan import MergePlan, Needed, Window
from swm.planners.drops import OnTry
from swm.planners.request import PlanRequest
from swm.registry import PLANNERS, Planner
from swm.search.threshold_path import Score

LACO_WINDOWS = (3, 4, 5, 6)  # layers per merge; the paper uses 3 to 6


def find(request: PlanRequest) -> MergePlan:
    """The plan of LaCo's walk, its windows merged by the paper formula (rdsc)."""
    from swm.search.window_score import WindowScorer

    score = WindowScorer(request.model, request.tokens, "rdsc", fast=request.fast).score
    return laco_plan(request.layer_count, request.layers, score, request.tried, request.kinds, request.needed)


def laco_plan(
    layer_count: int, layers: int, similarity: Score, on_try: OnTry, kinds: Sequence[str] = (), needed: Needed = ()
) -> MergePlan:
    """The plan that merges windows of a fixed size from the top while the final hidden state stays similar.

    Among all sizes and thresholds that leave `layers` layers, takes the highest threshold; the paper chooses both by
    hand.

    Args:
        similarity: as `WindowScorer.score`: of the windows merged above and the next one.
        kinds: of each layer, if those left must be of the kinds that the places had.
        needed: sets of layers of which one at least must stay.

    Raises:
        PlanError: if no size and threshold leave that many layers.

    Source: LaCo, arXiv:2402.11187, section 2.3, algorithm 1; the merge is the paper formula `rdsc`. Differs: windows
    never overlap (the paper's interval I is at least the size here), since a plan cannot merge a layer twice.
    """
    scores: dict[tuple[tuple[Window, ...], Window], float] = {}

    def score(above: tuple[Window, ...], window: Window) -> float:
        if (above, window) not in scores:
            scores[above, window] = similarity(above, window)
            on_try(len(scores), 0)
        return scores[above, window]

    sizes = [size for size in LACO_WINDOWS if (layer_count - layers) % (size - 1) == 0]  # others cannot leave as many
    threshold, plan = 0.0, None
    for size in sizes:
        for reached, windows in _laco_walks(layer_count, layers, size, score, threshold):
            fitting = MergePlan(layer_count, windows, "rdsc")
            if not fitting.out_of_place(kinds) and not fitting.lost(needed):
                threshold, plan = reached, fitting
                break
    if plan is None:
        where = " in places of their own kind" if kinds else ""
        raise PlanError(
            f"LaCo cannot leave {layers} of {layer_count} layers{where} with windows of {LACO_WINDOWS[0]} to "
            f"{LACO_WINDOWS[-1]} layers and a similarity above 0. Choose another number of layers or another planner."
        )
    return plan


def _laco_walks(
    layer_count: int, layers: int, size: int, score: Score, least: float
) -> Iterator[tuple[float, tuple[Window, ...]]]:
    """The thresholds above `least` that leave `layers` layers, highest first, and their windows.

    Tries every threshold that changes the walk, from the top down.
    """
    threshold = 1.0
    while threshold > least:
        above: tuple[Window, ...] = ()
        first, rejected = layer_count - size, 0.0
        while first >= 1 and layer_count - len(above) * (size - 1) >= layers:  # the paper's lowest layer L is 1
            window = Window(first, first + size - 1)
            similarity = score(above, window)
            if similarity > threshold:
                above = (window, *above)
                first -= size
            else:
                rejected = max(rejected, similarity)
                first -= 1
        if layer_count - len(above) * (size - 1) == layers:
            yield threshold, above
        threshold = math.nextafter(rejected, -1)


PLANNERS.register(
    Planner(
        "laco",
        "LaCo",
        "merges windows of a fixed size from the top while the final hidden state stays similar",
        "LaCo, arXiv:2402.11187",
        find,
    )
)
