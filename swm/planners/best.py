"""Our own search: layers dropped by beam search, each merged layer fitted on text, judged by perplexity."""

from __future__ import annotations

from dataclasses import replace

from swm.plan import MergePlan
from swm.planners.drops import DropLoss, beam_drops, dropped_plan
from swm.planners.request import PlanRequest
from swm.registry import PLANNERS, Planner
from swm.settings import FIT_TOKENS, WINDOW_FIT_TOKENS

WIDTH = 3  # sets of layers that the search goes on with, and fits in full at last


def find(request: PlanRequest) -> MergePlan:
    """Layers to drop by beam search over quickly fitted plans; the last are fitted in full and judged on other text."""
    from swm.evaluation.perplexity import perplexity
    from swm.merging.fit import apply_fitted_plan, check_fits, window_fitter
    from swm.search.plan_loss import PlanLoss

    model, count = request.model, request.layer_count
    check_fits(model)
    fitter = window_fitter(model, request.fit_tokens(WINDOW_FIT_TOKENS))
    loss = DropLoss(PlanLoss(model, request.tokens, fitter, request.fast), count, "fit")
    dropped = beam_drops(range(1, count), request.drop, loss, WIDTH, request.budget, request.tried)
    plans = [replace(dropped_plan(count, layers), rule="fit") for layers in dropped]
    rows = request.fit_tokens(FIT_TOKENS * 4 // 3)
    apart = max(1, len(rows) // 4)  # what a plan is fitted on does not judge it
    perplexities = []
    for done, plan in enumerate(plans):
        request.progress(done, len(plans), f"fitting plan {done + 1} of {len(plans)} in full")
        fitted = apply_fitted_plan(model, plan, rows[apart:])
        perplexities.append(perplexity(fitted, rows[:apart])["value"])
    return plans[perplexities.index(min(perplexities))]


def least_budget(layer_count: int, layers: int) -> int:
    """Plans to try at least: each layer once, and some for every further one that goes."""
    return layer_count - 1 + WIDTH * (layer_count - layers - 1)


PLANNERS.register(
    Planner(
        "best",
        "Best (beam search, fitted)",
        "drops layers by beam search, each merged layer fitted on text (rule fit), judged by perplexity; ours",
        "beam search over dropped layers, each merged layer fitted on text (Sliding-Window Merging Studio)",
        find,
        whole_model=True,
        least_budget=least_budget,
    )
)
