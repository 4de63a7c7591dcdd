"""Data of the Preview page: every plan of a threshold path with its numbers, ready for the browser. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swm.plan import MergePlan, Window
from swm.registry import MERGE_RULES
from swm.reporting.glossary import TERMS
from swm.reporting.palette import WINDOW_COLOURS
from swm.search.kept_path import KeptAnswers
from swm.search.threshold_path import ThresholdPath
from swm.workspace.targets import parameters_of, speedup_with, weights_of
from swm.workspace.units import gib

WITHIN = 1.2  # times the original's perplexity: the loss that the slider's mark allows
LOWEST = 0.5  # start of the slider, also if not computed that far
TEMPLATES = Path(__file__).parent / "templates"
PERPLEXITY = "Perplexity"
HELP = {
    "Layers": "Decoder layers after merging.",
    "Parameters": "Of the merged model, including embeddings.",
    "Weights": "Their size, at the experiment's precision. Generation adds its cache.",
    "Expected speed": "Expected generation speed relative to the original, estimated from its time per layer.",
    "Similarity": f"{TERMS['similarity']} Here: cosine of the last hidden states, mean over the calibration texts.",
    PERPLEXITY: f"{TERMS['perplexity']} Here: of the calibration text, before healing, and relative to the original.",
}


def path_view(
    path: ThresholdPath,
    facts: dict[str, Any],
    cost: dict[str, Any] | None = None,
    answers: KeptAnswers | None = None,
) -> dict[str, Any]:
    """Every interval of thresholds with its plan; a plan valid on several intervals is listed once.

    Returns:
        `steps`: [low, high, index of the plan, similarity], from the highest threshold down, with gaps where the path
        is not computed. `plans`: as `plan_view`, without the similarity, which belongs to the step. `prompts`, and
        `answers` of the original (None if unknown). `mark`: index in `steps` of the smallest plan whose perplexity is
        at most WITHIN times the original's, and `within`.
    """
    plans: dict[MergePlan, int] = {}
    steps: list[list[Any]] = []
    smallest, mark = path.smallest_within(WITHIN), None
    for step in path.intervals():
        if smallest and step.low == smallest.low:
            mark = len(steps)
        index = plans.setdefault(step.plan, len(plans))
        steps.append([step.low, step.high, index, f"{step.similarity:.4f}"])
    views = [plan_view(plan, facts, cost, path.perplexities, answers=answers) for plan in plans]
    return {
        "low": min(path.low, LOWEST),
        "high": path.high,
        "steps": steps,
        "plans": views,
        "prompts": answers.prompts if answers else [],
        "answers": answers.of.get(()) if answers else None,
        "original": path.perplexities.get(()),
        "within": WITHIN,
        "mark": mark,
    }


def plan_view(
    plan: MergePlan,
    facts: dict[str, Any],
    cost: dict[str, Any] | None = None,
    perplexities: dict[tuple[Window, ...], float] | None = None,
    similarity: float | None = None,
    answers: KeptAnswers | None = None,
) -> dict[str, Any]:
    """A plan's windows, and its numbers formatted for display; `drops`: all but the base layer of a window just go.

    Args:
        facts: of the original model: `parameters`, `parameters_per_layer`, `size_bytes`.
        cost: time of one generated token of the original, for the expected speed; see `evaluation.cost.decode_cost`.
        perplexities: of plans on the calibration text, by windows; the original's under ().
        answers: what plans write after the sample prompts.
    """
    perplexities, rule = perplexities or {}, MERGE_RULES[plan.rule]
    left = parameters_of(facts, plan)
    saved = 1 - left / facts["parameters"]
    perplexity, original = perplexities.get(plan.windows), perplexities.get(())
    speed = expected_speedup(plan, cost)
    numbers = {
        "Layers": f"{plan.layers_left} of {plan.layer_count}",
        "Parameters": f"{left / 1e6:,.1f} M",
        "Weights": gib(weights_of(facts, plan)),
        "Expected speed": f"× {speed:.2f}" if speed else "–",
        "Similarity": "–" if similarity is None else f"{similarity:.4f}",
        PERPLEXITY: "–" if perplexity is None else f"{perplexity:,.0f}",
    }
    more = {"Parameters": f"-{100 * saved:.1f} %"} if saved else {}
    if perplexity and original:
        more[PERPLEXITY] = f"× {perplexity / original:,.2f}"
    return {
        "layers": plan.layer_count,
        "left": plan.layers_left,
        "windows": [[window.first, window.last] for window in plan.windows],
        "base": rule.base,
        "drops": rule.combine is None and not rule.needs_text,
        "numbers": numbers,
        "more": more,
        "perplexity": perplexity,
        "answers": answers.of.get(plan.windows) if answers else None,
        "colours": WINDOW_COLOURS,
    }


def expected_speedup(plan: MergePlan, cost: dict[str, Any] | None) -> float | None:
    """Expected generation speed relative to the original, if each layer takes as long as in the original.

    None if the original's cost was not measured.
    """
    if not cost:
        return None
    return speedup_with({"layers": plan.layer_count}, cost, plan.layers_left)
