"""Our own method: drops layers by beam search, fits each merged layer on text, chooses by perplexity."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from swm.errors import PlanError
from swm.models.processes import agreed, shared, world_size
from swm.plan import MergePlan, dropped_plan
from swm.planners.drops import DropLoss, beam_drops, most_tried
from swm.planners.request import PlanRequest
from swm.progress import share_of
from swm.registry import PLANNERS, Planner
from swm.settings import FIT_TOKENS, WINDOW_FIT_TOKENS

WIDTH = 3  # beam width: sets of layers that the search keeps after each step, and that it fits in full at the least
RIVALS = ("angular", "shortgpt", "perplexity", "sleb")  # whose layers are tried, too
QUICK_RIVALS = RIVALS[:2]  # with a time limit
NEAR = 0.05  # nats: plans this near to the best one are fitted in full
RIVALS_DONE, SEARCHED = 0.2, 0.8  # shares of the time, with the usual budget and 30 layers


def find(request: PlanRequest) -> MergePlan:
    """The best plan found by beam search over quickly fitted plans, and among the plans of other methods.

    With a large vocabulary, the search estimates losses from a sample of it. The final candidates are fitted in full
    and compared by perplexity on text that they were not fitted on. Plans of other methods become candidates by the
    same loss as its own. Where a family's layers cannot be fitted, the state after them is rescaled instead. A plan
    that drops layer 0 is compared as it is: a repair needs a layer below that stays.
    """
    start = time.monotonic()
    from swm.evaluation.perplexity import perplexity
    from swm.merging.apply import apply_plan
    from swm.merging.fit import apply_fitted_plan, repair_of, window_fitter
    from swm.search.vocabulary import sample_for

    model, count, how = request.model, request.layer_count, repair_of(request.model)
    request = replace(request, sample=sample_for(model, request.tokens))  # the rivals' searches use it, too
    fitter = window_fitter(model, request.fit_tokens(WINDOW_FIT_TOKENS), how) if how else None
    loss = request.loss(how or "dropped", fitter)
    rivals = agreed(_rival_drops(request))
    searching = replace(request, progress=share_of(request.progress, RIVALS_DONE, SEARCHED))
    budget = _by_time(start + SEARCHED * request.seconds) if request.seconds else request.budget
    dropped = beam_drops(range(1, count), request.drop, loss, WIDTH, budget, searching.tried, request.kinds)
    losses = _losses(request, loss, list(dict.fromkeys([*dropped, *rivals])), how)
    ordered = sorted(losses, key=lambda layers: (losses[layers], sorted(layers)))
    near = [layers for layers in ordered if losses[layers] <= losses[ordered[0]] + NEAR]
    plans = [dropped_plan(count, layers) for layers in ordered[: max(WIDTH, len(near))]]
    plans = [replace(plan, rule=how) if how and 0 in plan.base_layers() else plan for plan in plans]
    rows = request.fit_tokens(FIT_TOKENS * 4 // 3)
    held_out = max(1, len(rows) // 4)  # texts for the comparison: not those a plan is fitted on
    fitting, perplexities = share_of(request.progress, SEARCHED, 1), []

    def measured(some: list[MergePlan]) -> list[dict[str, Any]]:
        smaller = (
            apply_fitted_plan(model, plan, rows[held_out:], None, request.fast, how)
            if plan.rule == how
            else apply_plan(model, plan)
            for plan in some
        )
        return [perplexity(each, rows[:held_out]) for each in smaller]

    for done in range(0, len(plans), world_size()):
        if request.seconds and time.monotonic() - start > request.seconds:
            break
        fitting(done, len(plans), f"fitting plan {done + 1} of {len(plans)} in full")
        perplexities += shared(plans[done : done + world_size()], measured)
    if not perplexities:
        return plans[0]
    chosen = min(range(len(perplexities)), key=lambda place: perplexities[place]["value"])
    request.finalists.update(_against(chosen, plans, perplexities))
    return plans[chosen]


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
    """How the other plans compare with the chosen one, the nearest first: see `PlanRequest.finalists`."""
    from swm.evaluation.paired import log_perplexity_ratio

    others = []
    for place, (plan, entry) in enumerate(zip(plans, perplexities, strict=False)):  # time may end before the last ones
        if place != chosen:
            ratio, low, high = (math.exp(end) for end in log_perplexity_ratio(perplexities[chosen], entry))
            merged = {"windows": plan.to_dict()["windows"], "rule": plan.rule}
            others.append({**merged, "ratio": ratio, "low": low, "high": high})
    return {"texts": perplexities[chosen]["texts"], "others": sorted(others, key=lambda other: other["ratio"])}


def _rival_drops(request: PlanRequest) -> list[frozenset[int]]:
    """The sets of layers that other methods drop; of those that find a plan."""
    found, names = [], QUICK_RIVALS if request.seconds else RIVALS
    for place, name in enumerate(names):
        first, last = (RIVALS_DONE * part / len(names) for part in (place, place + 1))
        try:
            plan = PLANNERS[name].find(replace(request, progress=share_of(request.progress, first, last)))
        except PlanError:
            continue
        found.append(frozenset(range(request.layer_count)) - set(plan.base_layers()))
    return list(dict.fromkeys(found))


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
        samples=True,
    )
)
