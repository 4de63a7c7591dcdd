"""Other methods that choose which layers go, and our own search over all of them. Each gives a `MergePlan`.

They need the model, calibration text and the number of layers to leave; what comes after (merge, recover, evaluate) is
the same for all. A method that drops layers gives windows whose first layer stays as it is; as in every window, its
layers have to be alike in shape.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from swm.decoder import find_decoder
from swm.errors import PlanError
from swm.gradients import loss_gradients
from swm.merge import MergedLayer, can_merge, merge_window, projections
from swm.path import Score
from swm.plan import MergePlan, Window, check_layers, check_planner
from swm.replay import Replay, check_tokens, layer_outputs
from swm.similarity import block_influence
from swm.windows import WindowScorer

OnTry = Callable[[int, int], None]
KEPT_BELOW, KEPT_ABOVE = 4, 2  # by Taylor+, see below
LACO_WINDOWS = (3, 4, 5, 6)  # layers in a merge; the paper takes 3 to 6
PART_TOKENS = 1024  # run together


def plan_with(
    planner: str,
    model: PreTrainedModel,
    tokens: Tensor,
    layers: int,
    seed: int = 1234,
    on_try: OnTry = lambda done, total: None,
    fast: bool = False,
) -> MergePlan:
    """The plan of a rival method that leaves so many layers.

    Args:
        planner: one of PLANNERS, but not "best": see `best_plans`.
        tokens: calibration text, ids of shape (texts, length), int64, no padding.
        on_try: called with (tries done, tries in all, 0 where that is unknown); may raise to stop.
        fast: similarities in bfloat16, which can be 0.001 off.

    Raises:
        SettingsError: if there is no such planner, or the model cannot have so many layers left. PlanError: if the
            method finds no such plan.
    """
    check_tokens(tokens)
    count = len(find_decoder(model).layers)
    check_planner(planner)
    check_layers(layers, count)
    drop = count - layers
    if planner == "random":
        return dropped_plan(count, random.Random(seed).sample(range(1, count), drop))
    if planner == "shortgpt":
        # ShortGPT, arXiv:2403.03853, section 3.2: block influence is 1 - mean cosine of a layer's input and output.
        return dropped_plan(count, _lowest(block_influence(model, tokens).tolist(), drop))
    if planner == "angular":
        return dropped_plan(count, most_redundant_block(model, tokens, drop))
    if planner == "taylor":
        kept = {*range(KEPT_BELOW), *range(count - KEPT_ABOVE, count)}
        values = taylor_importances(model, tokens)
        return dropped_plan(count, _lowest([math.inf if i in kept else v for i, v in enumerate(values)], drop))
    if planner in ("perplexity", "sleb"):
        loss = DropLoss(PlanLoss(model, tokens), count)
        if planner == "sleb":  # as in its released code, the first and the last layer stay
            return dropped_plan(count, beam_drops(range(1, count - 1), drop, loss, on_try=on_try)[0])
        return dropped_plan(count, _lowest(_losses_without(count, loss, on_try), drop))
    if planner == "laco":
        return laco_plan(count, layers, WindowScorer(model, tokens, "rdsc", fast=fast).score, on_try)
    raise ValueError(f"Planner {planner} needs more than the calibration text: see planning.plan_by.")


def _lowest(values: Sequence[float], drop: int) -> list[int]:
    """The layers of the lowest values; of equal ones the higher."""
    chosen = sorted(range(len(values)), key=lambda layer: (values[layer], -layer))[:drop]
    if any(math.isinf(values[layer]) for layer in chosen):
        fit = sum(map(math.isfinite, values))
        raise PlanError(f"This method can drop {fit} of {len(values)} layers at most. Keep more layers.")
    return chosen


def _losses_without(count: int, loss: DropLoss, on_try: OnTry) -> list[float]:
    """The loss without each layer alone. Source: Shortened LLaMA, arXiv:2402.02834, section 3.1 (PPL)."""
    found = []
    for layer in range(count):
        found.append(loss(frozenset({layer})))
        on_try(layer + 1, count)
    return found


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


def most_redundant_block(model: PreTrainedModel, tokens: Tensor, size: int) -> range:
    """The `size` neighbouring layers whose input and output are nearest in angle at the last token of each text.

    Source: The Unreasonable Ineffectiveness of the Deeper Layers, arXiv:2403.17887, section 3.2, equations 2 and 3.
    Differs: several short texts instead of one long set; the healing that belongs to it is left to the recovery.
    """
    if not size:
        return range(0)
    angles = []
    for text in tokens.split(1):
        first, outputs = layer_outputs(model, text)
        states = torch.cat([first[None], outputs])[:, 0, -1].double()
        angles.append(torch.arccos(F.cosine_similarity(states[:-size], states[size:], dim=-1).clamp(-1, 1)) / math.pi)
    start = int(torch.stack(angles).mean(0).argmin())
    return range(start, start + size)


def taylor_importances(model: PreTrainedModel, tokens: Tensor) -> list[float]:
    """Of each layer the sum of |weight * gradient of the loss| over its matrices.

    Source: Shortened LLaMA, arXiv:2402.02834, section 3.1. There as "Taylor+": the first four and last two layers stay.

    Memory: the gradient of all layers.
    """
    layers = [_matrices(layer) for layer in find_decoder(model).layers]
    weights = [weight for matrices in layers for weight in matrices]
    gradients = iter(loss_gradients(model, tokens, weights))
    return [
        sum(float((weight.detach().float() * next(gradients)).abs().sum(dtype=torch.float64)) for weight in matrices)
        for matrices in layers
    ]


def _matrices(layer: nn.Module) -> list[nn.Parameter]:
    names = projections(layer)
    return [weight for name, weight in layer.named_parameters() if name in names and weight.ndim >= 2]


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


def laco_plan(layer_count: int, layers: int, similarity: Score, on_try: OnTry) -> MergePlan:
    """Windows of a fixed size merged from the top while the final hidden state stays alike.

    Of all sizes and thresholds that leave so many layers, the highest threshold; the paper chooses both by hand.

    Args:
        similarity: of the windows merged above and the next one, as `WindowScorer.score`.

    Raises:
        PlanError: if none leaves so many.

    Source: LaCo, arXiv:2402.11187, section 2.3, algorithm 1; the merge is the printed formula of `rdsc`. Differs:
    windows never overlap (the paper's interval I is at least the size here): a layer merged twice is no window.
    """
    known: dict[tuple[tuple[Window, ...], Window], float] = {}

    def score(above: tuple[Window, ...], window: Window) -> float:
        if (above, window) not in known:
            known[above, window] = similarity(above, window)
            on_try(len(known), 0)
        return known[above, window]

    sizes = [size for size in LACO_WINDOWS if (layer_count - layers) % (size - 1) == 0]  # others never leave so many
    threshold, plan = 0.0, None
    for size in sizes:
        if found := _laco_walk(layer_count, layers, size, score, threshold):
            threshold, windows = found
            plan = MergePlan(layer_count, windows, "rdsc")
    if plan is None:
        raise PlanError(
            f"LaCo's walk leaves {layers} of {layer_count} layers with none of its sizes ({LACO_WINDOWS[0]}-"
            f"{LACO_WINDOWS[-1]}) while the similarity is above 0. Choose another number of layers or another planner."
        )
    return plan


def _laco_walk(
    layer_count: int, layers: int, size: int, score: Score, least: float
) -> tuple[float, tuple[Window, ...]] | None:
    """The highest threshold above `least` that leaves so many layers, and its windows.

    Each threshold that changes the walk is tried, from the top down.
    """
    threshold = 1.0
    while threshold > least:
        above: tuple[Window, ...] = ()
        first, rejected = layer_count - size, 0.0
        while first >= 1 and layer_count - len(above) * (size - 1) >= layers:  # the lowest layer L of the paper is 1
            window = Window(first, first + size - 1)
            similarity = score(above, window)
            if similarity > threshold:
                above = (window, *above)
                first -= size
            else:
                rejected = max(rejected, similarity)
                first -= 1
        if layer_count - len(above) * (size - 1) == layers:
            return threshold, above
        threshold = math.nextafter(rejected, -1)
    return None


class PlanLoss:
    """Loss of a plan's model on calibration text, nats per token; what lies below its lowest window is run once.

    Args:
        model: not changed.
        make: makes the merged layer of a window; by default the plan's rule does.
        fast: matrix products in bfloat16; moves a loss by some 0.001.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Tensor,
        make: Callable[[Window], MergedLayer] | None = None,
        fast: bool = False,
    ) -> None:
        part = max(1, PART_TOKENS // tokens.shape[1])
        self._tokens = tokens.to(model.device)
        self._replay = Replay(model, self._tokens, keep_every=4, fast=fast, part=part)
        self._rows = torch.arange(len(tokens)).split(part)
        self._make = make

    @torch.no_grad()
    def __call__(self, plan: MergePlan) -> float:
        """Infinite where windows cannot be merged or the model overflows."""
        layers = self._replay.layers
        if not all(can_merge(layers, window, plan.rule) for window in plan.windows):
            return math.inf
        make = self._make or (lambda window: merge_window(layers, window, plan.rule))
        lowest = min((window.first for window in plan.windows), default=plan.layer_count - 1)
        states = [self._replay.input_of(max(lowest, 0), rows) for rows in self._rows]
        for window in plan.kept_layers():
            if window.first >= lowest:
                merged = make(window) if len(window) > 1 else MergedLayer(window.first)
                states = [self._replay.run(hidden, merged.base, merged.parameters) for hidden in states]
        total = 0.0
        for rows, hidden in zip(self._rows, states, strict=True):
            logits = self._replay.logits(hidden)[:, :-1].float()
            total += float(F.cross_entropy(logits.flatten(0, 1), self._tokens[rows, 1:].flatten(), reduction="sum"))
        mean = total / self._tokens[:, 1:].numel()
        return mean if math.isfinite(mean) else math.inf


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
