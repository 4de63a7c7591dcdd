"""Our own method: drops layers by beam search, fits each merged layer on text, chooses by perplexity."""

from __future__ import annotations

from dataclasses import replace

from swm.plan import MergePlan
from swm.planners.drops import DropLoss, beam_drops, dropped_plan, most_tried
from swm.planners.request import PlanRequest
from swm.progress import share_of
from swm.registry import PLANNERS, Planner
from swm.settings import FIT_TOKENS, WINDOW_FIT_TOKENS

WIDTH = 3  # beam width: sets of layers that the search keeps after each step, and fits in full at the end
SEARCHING = 0.8  # share of the time until the last candidates are fitted, with the usual budget and 30 layers


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
    searching = replace(request, progress=share_of(request.progress, 0, SEARCHING))
    dropped = beam_drops(range(1, count), request.drop, loss, WIDTH, request.budget, searching.tried, request.kinds)
    plans = [replace(dropped_plan(count, layers), rule="fit") for layers in dropped]
    rows = request.fit_tokens(FIT_TOKENS * 4 // 3)
    held_out = max(1, len(rows) // 4)  # texts for the comparison: not those a plan is fitted on
    fitting, perplexities = share_of(request.progress, SEARCHING, 1), []
    for done, plan in enumerate(plans):
        fitting(done, len(plans), f"fitting plan {done + 1} of {len(plans)} in full")
        fitted = apply_fitted_plan(model, plan, rows[held_out:])
        perplexities.append(perplexity(fitted, rows[:held_out])["value"])
    return plans[perplexities.index(min(perplexities))]


def least_budget(layer_count: int, layers: int) -> int:
    """Minimum number of plans to try: each layer once, and WIDTH for every further layer to drop."""
    return layer_count - 1 + WIDTH * (layer_count - layers - 1)


def tokens_read(layer_count: int, layers: int, budget: int, tokens: int) -> float:
    """Each plan tried reads the text; the last ones are fitted, for which the original reads the text as well."""
    tried = min(budget, most_tried(layer_count - 1, layer_count - layers, WIDTH))
    return tried * tokens + 2 * WIDTH * FIT_TOKENS


PLANNERS.register(
    Planner(
        "best",
        "Beam search, fitted (best)",
        "drops layers by beam search, fits each merged layer on text (rule fit), chooses by perplexity; our own method",
        "beam search over dropped layers, each merged layer fitted on text (Sliding-Window Merging Studio)",
        find,
        whole_model=True,
        least_budget=least_budget,
        tokens_read=tokens_read,
    )
)
