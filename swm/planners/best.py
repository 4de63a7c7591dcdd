"""Our own method: drops layers by beam search, fits each merged layer on text, chooses by perplexity."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from swm.errors import PlanError
from swm.models.processes import agreed, shared, world_size
from swm.plan import MergePlan, dropped_plan
from swm.planners.drops import DropLoss, beam_drops, most_tried
from swm.planners.request import PlanRequest
from swm.progress import Progress, share_of
from swm.registry import PLANNERS, Planner
from swm.settings import FIT_TOKENS, WINDOW_FIT_TOKENS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

WIDTH = 3  # beam width: sets of layers that the search keeps after each step, and that it fits in full at the least
RIVALS = ("angular", "shortgpt", "perplexity", "sleb")  # whose layers are tried, too
QUICK_RIVALS = RIVALS[:2]  # tried under any time limit; the others if they end within RIVALS_DONE of it
NEAR = 0.05  # nats: plans this near to the best one are fitted in full
RIVALS_DONE, SEARCHED = 0.2, 0.8  # shares of the time, with the usual budget and 30 layers


def find(request: PlanRequest) -> MergePlan:
    """The best plan found by beam search over quickly fitted plans, and among the plans of other methods.

    With a large vocabulary, the search estimates losses from a sample of it. The final candidates are fitted in full
    and compared by perplexity on text that they were not fitted on. Plans of other methods become candidates by the
    same loss as its own. Where a family's layers cannot be fitted, the state after them is rescaled instead. A plan
    that drops layer 0 is compared as it is: a repair needs a layer below that stays.
    """
    from swm.merging.fit import repair_of
    from swm.search.vocabulary import sample_for

    start, how = time.monotonic(), repair_of(request.model)
    request = replace(request, sample=sample_for(request.model, request.tokens))  # the rivals' searches use it, too
    return _chosen(request, _candidates(request, how, start), how, start)


def _candidates(request: PlanRequest, how: str | None, start: float) -> list[MergePlan]:
    """The plans to compare in full, the one of lowest loss first."""
    from swm.merging.fit import window_fitter

    count = request.layer_count
    fitter = window_fitter(request.model, request.fit_tokens(WINDOW_FIT_TOKENS), how) if how else None
    loss = request.loss(how or "dropped", fitter)
    rivals, left_out = agreed(_rival_drops(request, start))
    if left_out:
        request.finalists.update(texts=0, others=[], left_out=left_out)
    searching = replace(request, progress=share_of(request.progress, RIVALS_DONE, SEARCHED))
    budget = _by_time(start + SEARCHED * request.seconds) if request.seconds else request.budget
    dropped = beam_drops(range(1, count), request.drop, loss, WIDTH, budget, searching.tried, request.kinds)
    losses = _losses(request, loss, list(dict.fromkeys([*dropped, *rivals])), how)
    possible = [layers for layers, value in losses.items() if math.isfinite(value)]
    ordered = sorted(possible, key=lambda layers: (losses[layers], sorted(layers)))
    near = [layers for layers in ordered if losses[layers] <= losses[ordered[0]] + NEAR]
    plans = [dropped_plan(count, layers) for layers in ordered[: max(WIDTH, len(near))]]
    plans = [replace(plan, rule=how) if how and 0 in plan.base_layers() else plan for plan in plans]
    # known losses can be of an earlier release, which asked neither
    plans = [plan for plan in plans if request.possible(plan) and request.describable(plan)]
    if not plans:
        raise PlanError(
            f"None of the plans tried leaves {request.layers} layers that work together. Choose another number of "
            "layers, a larger budget or another planner."
        )
    return plans


def _chosen(request: PlanRequest, plans: list[MergePlan], how: str | None, start: float) -> MergePlan:
    """The plan of lowest perplexity on held-out text, each made as it will be merged; the first one out of time."""
    from swm.evaluation.perplexity import perplexity
    from swm.merging.apply import apply_plan
    from swm.merging.fit import apply_fitted_plan

    kept = request.kept
    merged_on = request.fit_tokens(FIT_TOKENS)
    rows, held_out = _parted(merged_on, request.fit_tokens(FIT_TOKENS * 4 // 3))
    fitting, found = share_of(request.progress, SEARCHED, 1), []

    def made(plan: MergePlan, rows: Tensor) -> PreTrainedModel:
        if plan.rule != how:
            return apply_plan(request.model, plan)
        return apply_fitted_plan(request.model, plan, rows, None, request.fast, how)

    def measured(some: list[MergePlan]) -> list[tuple[dict[str, Any], float]]:
        smaller = (made(plan, rows) for plan in some)
        if kept:
            return [({"value": kept.rise_of(each)}, perplexity(each, request.tokens)["value"]) for each in smaller]
        return [(perplexity(each, held_out), perplexity(each, request.tokens)["value"]) for each in smaller]

    for done in range(0, len(plans), world_size()):
        if request.seconds and time.monotonic() - start > request.seconds:
            break
        fitting(done, len(plans), f"fitting plan {done + 1} of {len(plans)} in full")
        found += shared(plans[done : done + world_size()], measured)
    if not found:
        return plans[0]
    perplexities = [held for held, _ in found]
    chosen = min(range(len(found)), key=lambda place: perplexities[place]["value"])
    full = found[chosen][1]
    if rows is not merged_on:
        full = perplexity(made(plans[chosen], merged_on), request.tokens)["value"]
    request.finalists.update(_against(chosen, plans, perplexities), perplexity=full)
    return plans[chosen]


def _parted(rows: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
    """The texts that a merge fits layers on, and others for the comparison.

    Of a short text, a quarter of its rows; of a single row, the last quarter of its tokens.
    """
    if len(more) == 1:
        cut = more.shape[1] - max(2, more.shape[1] // 4)
        return more[:, :cut], more[:, cut:]
    known = {tuple(row) for row in rows.tolist()}
    others = [place for place, row in enumerate(more.tolist()) if tuple(row) not in known]
    if 4 * len(others) < len(rows):
        return more[max(1, len(more) // 4) :], more[: max(1, len(more) // 4)]
    return rows, more[others]


def _losses(
    request: PlanRequest, loss: DropLoss, sets: Sequence[frozenset[int]], how: str | None
) -> dict[frozenset[int], float]:
    """Each set's loss on the calibration text, repaired except where layer 0 is dropped."""
    bare = [layers for layers in sets if how and 0 in layers]
    repaired = [layers for layers in sets if layers not in bare]
    found = dict(zip(repaired, loss.of_all(repaired), strict=True))
    if bare:
        found |= zip(bare, request.loss("dropped").of_all(bare), strict=True)
    return found


def _against(chosen: int, plans: Sequence[MergePlan], perplexities: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How the other plans compare with the chosen one, the nearest first; none on a single text, which gives no
    interval. See `PlanRequest.finalists`."""
    from swm.evaluation.paired import has_interval, log_perplexity_ratio

    others, certain = [], has_interval(perplexities[chosen])
    for place, (plan, entry) in enumerate(zip(plans, perplexities, strict=False)):  # time may end before the last ones
        if place != chosen and certain:
            ratio, low, high = (math.exp(end) for end in log_perplexity_ratio(perplexities[chosen], entry))
            merged = {"windows": plan.to_dict()["windows"], "rule": plan.rule}
            others.append({**merged, "ratio": ratio, "low": low, "high": high})
    return {"texts": perplexities[chosen].get("texts", 0), "others": sorted(others, key=lambda other: other["ratio"])}


def _rival_drops(request: PlanRequest, start: float) -> tuple[list[frozenset[int]], list[str]]:
    """The sets of layers that other methods drop, of those that find a plan; and the methods that were not in time."""
    found, late, end = [], list[str](), start + RIVALS_DONE * request.seconds if request.seconds else math.inf
    for place, name in enumerate(RIVALS):
        first, last = (RIVALS_DONE * part / len(RIVALS) for part in (place, place + 1))
        progress = share_of(request.progress, first, last)
        if name not in QUICK_RIVALS:
            progress = _until(end, progress)
        try:
            plan = PLANNERS[name].find(replace(request, progress=progress))
        except PlanError:
            continue
        except _OutOfTimeError:
            late.append(name)
            continue
        found.append(frozenset(range(request.layer_count)) - set(plan.base_layers()))
    return list(dict.fromkeys(found)), late


class _OutOfTimeError(Exception):
    """A rival takes longer than it may."""


def _until(end: float, progress: Progress) -> Progress:
    """Progress that raises _OutOfTimeError if there is more to do at `end`."""

    def report(done: int, total: int, text: str) -> None:
        progress(done, total, text)
        if done < total and time.monotonic() > end:
            raise _OutOfTimeError

    return report


def _by_time(end: float) -> Callable[[int], int]:
    """How many plans can be tried until `end`, given how many have been tried since now."""
    start = time.monotonic()

    def most(tried: int) -> int:
        now = time.monotonic()
        return tried + int(tried * max(0.0, end - now) / max(1e-6, now - start))

    return most


def least_budget(layer_count: int, layers: int) -> int:
    """Minimum number of plans to try: each layer once, and WIDTH for every further layer to drop."""
    return layer_count - 1 + WIDTH * (layer_count - layers - 1)


def tokens_read(layer_count: int, layers: int, budget: int, tokens: int) -> float:
    """Each plan tried reads the text; the last ones are fitted, for which the original reads the text as well."""
    tried = min(budget, most_tried(layer_count - 1, layer_count - layers, WIDTH))
    rivals = [read(layer_count, layers, budget, tokens) for name in RIVALS if (read := PLANNERS[name].tokens_read)]
    return sum(rivals) + (tried + len(RIVALS)) * tokens + 2 * WIDTH * FIT_TOKENS


PLANNERS.register(
    Planner(
        "best",
        "Beam search, fitted (best)",
        "drops layers by beam search, fits each merged layer on text (rule fit), takes the plan of lowest perplexity, "
        "those of other methods included; our own method",
        "beam search over dropped layers, each merged layer fitted on text (Sliding-Window Merging Studio)",
        find,
        whole_model=True,
        least_budget=least_budget,
        tokens_read=tokens_read,
        keeps=True,
        samples=True,
    )
)
