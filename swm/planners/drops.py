"""Plans that drop layers: from a set of layers to windows, and the searches over such sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from swm.errors import PlanError
from swm.plan import MergePlan, Window

OnTry = Callable[[int, int], None]


def lowest_layers(values: Sequence[float], drop: int) -> list[int]:
    """The `drop` layers with the lowest values; among equal ones, the higher layer.

    Raises:
        PlanError: if fewer layers have a finite value.
    """
    lowest = sorted(range(len(values)), key=lambda layer: (values[layer], -layer))[:drop]
    if any(math.isinf(values[layer]) for layer in lowest):
        droppable = sum(map(math.isfinite, values))
        raise PlanError(f"This method can drop at most {droppable} of {len(values)} layers. Keep more layers.")
    return lowest


def dropped_plan(layer_count: int, dropped: Iterable[int]) -> MergePlan:
    """The plan that drops these layers and keeps all others unchanged.

    Raises:
        PlanError: if all layers are dropped.
    """
    removed = set(dropped)
    # A run of dropped layers forms a window with the kept layer next to it: the one below, or the one above if layer 0
    # is dropped. If the last layer is dropped as well, the lowest run's window starts at the embedding (-1).
    keeper = 1 if 0 in removed and layer_count - 1 not in removed else -1
    windows: list[Window] = []
    for layer in sorted(removed):
        window = Window(layer + min(keeper, 0), layer + max(keeper, 0))
        if windows and (layer - 1 in removed):
            window = Window(windows.pop().first, window.last)
        windows.append(window)
    return MergePlan(layer_count, tuple(windows), "keep_first" if keeper < 0 else "keep_last")


def beam_drops(
    candidates: Sequence[int],
    drop: int,
    loss: Callable[[frozenset[int]], float],
    width: int = 1,
    budget: int | None = None,
    on_try: OnTry = lambda done, total: None,
) -> list[frozenset[int]]:
    """Sets of layers to drop, best first: each step drops one more layer from the `width` best sets so far.

    With `width` 1 and no budget this is SLEB's greedy search, arXiv:2402.09025, section 3.3, algorithm 1.

    Args:
        candidates: layers that may be dropped.
        loss: of the model without these layers; lower is better.
        budget: maximum number of sets to try. The first step tries every layer; later steps try the most promising
            sets, judged by the losses of that first step.
    """
    most = most_tried(len(candidates), drop, width)
    total = min(budget or most, most)
    best, single, tried = {frozenset[int](): 0.0}, dict.fromkeys(candidates, 0.0), 0
    for step in range(drop):
        expected: dict[frozenset[int], float] = {}
        for dropped, value in best.items():
            for layer in set(candidates) - dropped:
                child = dropped | {layer}
                expected[child] = min(expected.get(child, math.inf), value + single[layer])
        children = sorted(expected, key=lambda child: (expected[child], sorted(child)))
        if budget and step:
            children = children[: max(width, (budget - tried) // (drop - step))]
        losses = {}
        for child in children:
            losses[child] = loss(child)
            tried += 1
            on_try(tried, max(total, tried))
        if not step:
            single = {layer: losses[frozenset({layer})] for layer in candidates}
        best = dict(sorted(losses.items(), key=lambda item: item[1])[:width])
    return list(best)


def most_tried(candidates: int, drop: int, width: int = 1) -> int:
    """The most sets that `beam_drops` tries: each step tries every remaining candidate beside each of `width` sets."""
    return sum((width if step else 1) * (candidates - step) for step in range(drop))


class DropLoss:
    """Loss of the model without a set of layers; infinite if no plan can describe that model.

    Args:
        rule: merge rule for the windows, instead of keeping the other layers unchanged.
    """

    def __init__(self, loss: Callable[[MergePlan], float], layer_count: int, rule: str | None = None) -> None:
        self._loss, self._layer_count, self._rule = loss, layer_count, rule

    def __call__(self, dropped: frozenset[int]) -> float:
        try:
            plan = dropped_plan(self._layer_count, dropped)
            plan = replace(plan, rule=self._rule or plan.rule)
        except PlanError:
            return math.inf
        return self._loss(plan)
