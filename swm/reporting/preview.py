"""What the preview draws: every plan of a threshold path with its numbers, ready for the browser. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swm.plan import MergePlan, Window
from swm.registry import MERGE_RULES
from swm.reporting.palette import WINDOW_COLOURS
from swm.search.threshold_path import ThresholdPath
from swm.workspace.units import gib

LOWEST = 0.5  # where the slider begins, computed or not


TEMPLATES = Path(__file__).parent / "templates"


HELP = {
    "Layers": "Decoder layers after merging.",
    "Parameters": "Of the merged model, embeddings included.",
    "Memory": "Of the weights, in the experiment's number format; generation adds its cache.",
    "Speed": "Expected while generating, times the original, from what its layers cost it.",
    "Similarity": "Cosine between the final hidden states of merged and original model, mean of the texts.",
    "Perplexity": "On the calibration text, before healing, and how many times the original's. Lower is better.",
}


def path_view(path: ThresholdPath, facts: dict[str, Any], cost: dict[str, Any] | None = None) -> dict[str, Any]:
    """Every interval of thresholds with its plan; plans that hold on several intervals stand once.

    Returns:
        `steps`: [low, high, index of the plan, similarity], from the highest threshold down, gaps where the path is not
        computed. `plans`: as `plan_view`, without the similarity, which belongs to the step.
    """
    plans: dict[MergePlan, int] = {}
    steps = []
    for step in path.intervals():
        index = plans.setdefault(step.plan, len(plans))
        steps.append([step.low, step.high, index, f"{step.similarity:.4f}"])
    views = [plan_view(plan, facts, cost, path.perplexities) for plan in plans]
    return {"low": min(path.low, LOWEST), "high": path.high, "steps": steps, "plans": views}


def plan_view(
    plan: MergePlan,
    facts: dict[str, Any],
    cost: dict[str, Any] | None = None,
    perplexities: dict[tuple[Window, ...], float] | None = None,
    similarity: float | None = None,
) -> dict[str, Any]:
    """A plan's windows and its numbers as people read them.

    Args:
        facts: of the original model: `parameters`, `parameters_per_layer`, `size_bytes`.
        cost: of one generated token of the original, for the expected speed; see `swm.evaluation.cost.decode_cost`.
        perplexities: of plans on the calibration text, that of the original under ().
    """
    known = perplexities or {}
    saved = (plan.layer_count - plan.worth_layers) * facts["parameters_per_layer"]
    perplexity, original = known.get(plan.windows), known.get(())
    speed = expected_speedup(plan, cost)
    numbers = {
        "Layers": f"{plan.layers_left} of {plan.layer_count}",
        "Parameters": f"{(facts['parameters'] - saved) / 1e6:,.1f} M",
        "Memory": gib(facts["size_bytes"] * (1 - saved / facts["parameters"])),
        "Speed": f"× {speed:.2f}" if speed else "–",
        "Similarity": "–" if similarity is None else f"{similarity:.4f}",
        "Perplexity": "–" if perplexity is None else f"{perplexity:,.0f}",
    }
    more = {"Parameters": f"−{saved / facts['parameters']:.1%}"} if saved else {}
    if perplexity and original:
        more["Perplexity"] = f"× {perplexity / original:,.2f}"
    return {
        "layers": plan.layer_count,
        "left": plan.layers_left,
        "windows": [[window.first, window.last] for window in plan.windows],
        "base": MERGE_RULES[plan.rule].base,
        "numbers": numbers,
        "more": more,
        "colours": WINDOW_COLOURS,
    }


def expected_speedup(plan: MergePlan, cost: dict[str, Any] | None) -> float | None:
    """How many times faster the plan's model generates when a layer costs what it costs in the original.

    None if that was not measured.
    """
    if not cost:
        return None
    layers, rest = cost["layers_ms"], cost["rest_ms"]
    return float((layers + rest) / (layers * plan.layers_left / plan.layer_count + rest))
