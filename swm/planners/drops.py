"""Plans that leave layers out: from a set of layers to windows, and the searches over such sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from swm.errors import PlanError
from swm.plan import MergePlan, Window

OnTry = Callable[[int, int], None]


def lowest_layers(values: Sequence[float], drop: int) -> list[int]:
    """The layers of the lowest values; of equal ones the higher."""
    chosen = sorted(range(len(values)), key=lambda layer: (values[layer], -layer))[:drop]
    if any(math.isinf(values[layer]) for layer in chosen):
        fit = sum(map(math.isfinite, values))
        raise PlanError(f"This method can drop {fit} of {len(values)} layers at most. Keep more layers.")
    return chosen


def dropped_plan(layer_count: int, dropped: Iterable[int]) -> MergePlan:
    """The plan that leaves these layers out and changes no other.

    Raises:
        PlanError: if all are dropped.
    """
    gone = set(dropped)
    # The layer beside a run that stands for it: below, or above where layer 0 is gone. Where the last one is, too, the
    # embedding stands for the lowest run.
    keeper = 1 if 0 in gone and layer_count - 1 not in gone else -1
    windows: list[Window] = []
    for layer in sorted(gone):
        window = Window(layer + min(keeper, 0), layer + max(keeper, 0))
        if windows and (layer - 1 in gone):
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
    """Layers to drop, found by dropping one more at a time from the `width` best sets so far; the best sets first.

    With `width` 1 and no budget this is SLEB's greedy search, arXiv:2402.09025, section 3.3, algorithm 1.

    Args:
        candidates: layers that may go.
        loss: of the model without these layers, lower is better.
        budget: sets tried at most. The first step tries all layers; later ones those that lost least then.
    """
    sizes = range(len(candidates), len(candidates) - drop, -1)
    total = min(budget or sum(sizes), width * sum(sizes))
    best, alone, tried = {frozenset[int](): 0.0}, dict.fromkeys(candidates, 0.0), 0
    for step in range(drop):
        expected: dict[frozenset[int], float] = {}
        for gone, value in best.items():
            for layer in set(candidates) - gone:
                child = gone | {layer}
                expected[child] = min(expected.get(child, math.inf), value + alone[layer])
        children = sorted(expected, key=lambda child: (expected[child], sorted(child)))
        if budget and step:
            children = children[: max(width, (budget - tried) // (drop - step))]
        losses = {}
        for child in children:
            losses[child] = loss(child)
            tried += 1
            on_try(tried, max(total, tried))
        if not step:
            alone = {layer: losses[frozenset({layer})] for layer in candidates}
        best = dict(sorted(losses.items(), key=lambda one: one[1])[:width])
    return list(best)


class DropLoss:
    """Loss of the model without some layers; infinite where no plan says that.

    Args:
        rule: instead of leaving the other layers as they are.
    """

    def __init__(self, loss: Callable[[MergePlan], float], layer_count: int, rule: str | None = None) -> None:
        self._loss, self._layer_count, self._rule = loss, layer_count, rule

    def __call__(self, gone: frozenset[int]) -> float:
        try:
            plan = dropped_plan(self._layer_count, gone)
            plan = replace(plan, rule=self._rule or plan.rule)
        except PlanError:
            return math.inf
        return self._loss(plan)
