"""Our own method: drops layers by beam search, fits each merged layer on text, chooses by perplexity."""

from __future__ import annotations

from dataclasses import replace

from swm.plan import MergePlan
from swm.planners.drops import DropLoss, beam_drops, dropped_plan
from swm.planners.request import PlanRequest
from swm.registry import PLANNERS, Planner
from swm.settings import FIT_TOKENS, WINDOW_FIT_TOKENS

WIDTH = 3  # beam width: sets of layers that the search keeps after each step, and fits in full at the end


def find(request: PlanRequest) -> MergePlan:
    """The best plan found by beam search over quickly fitted plans.

    The final candidates are fitted in full and compared by perplexity on text that they were not fitted on.
    """
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
    held_out = max(1, len(rows) // 4)  # texts for the comparison: not those a plan is fitted on
    perplexities = []
    for done, plan in enumerate(plans):
        request.progress(done, len(plans), f"fitting plan {done + 1} of {len(plans)} in full")
        fitted = apply_fitted_plan(model, plan, rows[held_out:])
        perplexities.append(perplexity(fitted, rows[:held_out])["value"])
    return plans[perplexities.index(min(perplexities))]


def least_budget(layer_count: int, layers: int) -> int:
    """Minimum number of plans to try: each layer once, and WIDTH for every further layer to drop."""
    return layer_count - 1 + WIDTH * (layer_count - layers - 1)


PLANNERS.register(
    Planner(
        "best",
        "Beam search, fitted (best)",
        "drops layers by beam search, fits each merged layer on text (rule fit), chooses by perplexity; our own method",
        "beam search over dropped layers, each merged layer fitted on text (Sliding-Window Merging Studio)",
        find,
        whole_model=True,
        least_budget=least_budget,
    )
)
