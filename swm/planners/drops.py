"""Searches over sets of layers to drop, and the losses that they compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from swm.errors import PlanError
from swm.models.processes import shared, world_size
from swm.plan import MergePlan, Needed, dropped_plan

IN_A_ROUND = 4  # sets for each of several processes before they exchange losses
OnTry = Callable[[int, int], None]


def lowest_layers(values: Sequence[float], drop: int, kinds: Sequence[str] = (), needed: Needed = ()) -> list[int]:
    """The `drop` layers with the lowest values; among equal ones, the higher layer.

    Args:
        kinds: of each layer, if those left must be of the kinds that the places had: then the set of lowest sum.
        needed: sets of layers of which one at least must stay: the one with the highest value then does.

    Raises:
        PlanError: if fewer layers have a finite value, or no set keeps the kinds.
    """
    lowest = sorted(range(len(values)), key=lambda layer: (values[layer], -layer))[:drop]
    if kinds:
        droppable_layers = {layer for layer, value in enumerate(values) if math.isfinite(value)}
        lowest = sorted(_lowest_in_place(values, drop, kinds, droppable_layers))
    if lost := next((group for group in needed if {*lowest}.issuperset(group)), None):
        spared = max(lost, key=lambda layer: (values[layer], -layer))
        values = [math.inf if layer == spared else value for layer, value in enumerate(values)]
        return lowest_layers(values, drop, kinds, needed)
    if any(math.isinf(values[layer]) for layer in lowest):
        droppable = sum(map(math.isfinite, values))
        raise PlanError(f"This method can drop at most {droppable} of {len(values)} layers. Keep more layers.")
    return lowest


def _lowest_in_place(
    values: Sequence[float], drop: int, kinds: Sequence[str], droppable: Collection[int]
) -> frozenset[int]:
    """The set of `drop` layers of lowest sum after which every layer left stands where one of its kind stood."""
    best: dict[int, tuple[float, frozenset[int]]] = {0: (0.0, frozenset())}  # by the number of layers left so far
    for layer, kind in enumerate(kinds):
        further: dict[int, tuple[float, frozenset[int]]] = {}
        for left, (total, dropped) in best.items():
            choices = [(left + 1, total, dropped)] if kinds[left] == kind else []
            if layer in droppable and len(dropped) < drop:
                choices.append((left, total + values[layer], dropped | {layer}))
            for place, value, chosen in choices:
                if place not in further or value < further[place][0]:
                    further[place] = value, chosen
        best = further
    if len(kinds) - drop not in best:
        raise PlanError(
            f"This planner cannot remove {drop} layers so that each layer left is of the kind its place had. It can "
            f"leave {_numbers_left(kinds, droppable)} layers. Choose one of these, or another planner."
        )
    return best[len(kinds) - drop][1]


def _numbers_left(kinds: Sequence[str], droppable: Collection[int]) -> str:
    numbers = {0}
    for layer, kind in enumerate(kinds):
        stays = {left + 1 for left in numbers if kinds[left] == kind}
        numbers = stays | (numbers if layer in droppable else set())
    return ", ".join(map(str, sorted(numbers - {0, 1, len(kinds)}, reverse=True))) or "no other number of"


def can_keep_places(kinds: Sequence[str], dropped: Collection[int], drop: int, droppable: Collection[int]) -> bool:
    """Whether `drop` layers, among them `dropped`, can go so that each layer left is of the kind its place had.

    Args:
        kinds: of each layer; empty: they may stand anywhere.
        droppable: layers that may go.
    """
    must = [-len(kinds) if layer in dropped else 0.0 for layer in range(len(kinds))]
    try:
        return not kinds or set(dropped) <= _lowest_in_place(must, drop, kinds, droppable)
    except PlanError:
        return False


def beam_drops(
    candidates: Sequence[int],
    drop: int,
    loss: Callable[[frozenset[int]], float],
    width: int = 1,
    budget: int | Callable[[int], int] | None = None,
    on_try: OnTry = lambda done, total: None,
    kinds: Sequence[str] = (),
) -> list[frozenset[int]]:
    """Sets of layers to drop, best first: each step drops one more layer from the `width` best sets so far.

    With `width` 1 and no budget this is SLEB's greedy search, arXiv:2402.09025, section 3.3, algorithm 1.

    Args:
        candidates: layers that may be dropped.
        loss: of the model without these layers; lower is better.
        budget: maximum number of sets to try, or a function that says it, given how many have been tried. The first
            step tries every layer; later steps try the most promising sets, judged by the losses of that first step.
        kinds: of each layer, if those left must be of the kinds that the places had.

    Raises:
        PlanError: if no set keeps the kinds.
    """
    if kinds:
        _lowest_in_place([0.0] * len(kinds), drop, kinds, candidates)
    at_once = in_a_round()
    loss_of_all = loss.of_all if isinstance(loss, DropLoss) else lambda sets: list(map(loss, sets))
    most = most_tried(len(candidates), drop, width)
    most_now = budget if callable(budget) else lambda tried: budget or most
    best, single, tried = {frozenset[int](): 0.0}, dict.fromkeys(candidates, 0.0), 0
    for step in range(drop):
        expected: dict[frozenset[int], float] = {}
        for dropped, value in best.items():
            for layer in set(candidates) - dropped:
                child = dropped | {layer}
                if not can_keep_places(kinds, child, drop, candidates):
                    continue
                expected[child] = min(expected.get(child, math.inf), value + single[layer])
        children = sorted(expected, key=lambda child: (expected[child], sorted(child)))
        if budget and step:
            children = children[: max(width, (most_now(tried) - tried) // (drop - step))]
        losses: dict[frozenset[int], float] = {}
        for place in range(0, len(children), at_once):
            if budget and step and place >= width and tried >= most_now(tried):
                break  # out of time
            tries = children[place : place + at_once]
            losses |= zip(tries, loss_of_all(tries), strict=True)
            tried += len(tries)
            on_try(tried, max(min(most_now(tried), most), tried))
        if not step:
            single.update({layer: loss for (layer,), loss in losses.items()})
        best = dict(sorted(losses.items(), key=lambda item: item[1])[:width])
    return list(best)


def in_a_round() -> int:
    """How many sets to try before their losses are looked at: one, or some for each of several processes."""
    return 1 if world_size() == 1 else IN_A_ROUND * world_size()


def most_tried(candidates: int, drop: int, width: int = 1) -> int:
    """The most sets that `beam_drops` tries: each step tries every remaining candidate beside each of `width` sets."""
    return sum((width if step else 1) * (candidates - step) for step in range(drop))


class DropLoss:
    """Loss of the model without a set of layers; infinite if no plan can describe that model.

    Args:
        rule: merge rule for the windows, instead of keeping the other layers unchanged.
        known: losses found before; those found here are added.
        possible: whether a plan's model can be built and used; all are by default.
    """

    def __init__(
        self,
        loss: Callable[[MergePlan], float],
        layer_count: int,
        rule: str | None = None,
        known: dict[frozenset[int], float] | None = None,
        possible: Callable[[MergePlan], bool] = lambda plan: True,
    ) -> None:
        self._possible = possible
        self._loss, self._layer_count, self._rule = loss, layer_count, rule
        self._known = {} if known is None else known

    def __call__(self, dropped: frozenset[int]) -> float:
        if dropped not in self._known:
            self._known[dropped] = self._computed(dropped)
        return self._known[dropped]

    def of_all(self, sets: Sequence[frozenset[int]]) -> list[float]:
        """The loss without each of these sets; several processes share out those that are not known."""
        unknown = [dropped for dropped in dict.fromkeys(sets) if dropped not in self._known]
        found = shared(unknown, lambda part: list(map(self._computed, part)), self._above)
        self._known |= zip(unknown, found, strict=True)
        return [self._known[dropped] for dropped in sets]

    def _above(self, dropped: frozenset[int]) -> float:
        """Layers that are run: those above the lowest of the dropped ones."""
        return float(self._layer_count - min(dropped, default=self._layer_count))

    def _computed(self, dropped: frozenset[int]) -> float:
        try:
            plan = dropped_plan(self._layer_count, dropped)
            plan = replace(plan, rule=self._rule or plan.rule)
        except PlanError:
            return math.inf
        return self._loss(plan) if self._possible(plan) else math.inf
