"""What the preview draws: every plan of a threshold path with its numbers, ready for the browser. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swm.estimate import gib
from swm.path import ThresholdPath
from swm.plan import MergePlan, Window

BETTER, WORSE = "#2f6fde", "#d9730d"
WINDOW_COLOURS = ("#0072b2", "#b5568c", "#00835f", "#a6761d", "#7b68b5", "#3d87b5")
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
        cost: of one generated token of the original, for the expected speed; see `swm.timing.decode_cost`.
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
        "base": "last" if plan.rule == "keep_last" else "first",
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


def similar_patches(matrix: Sequence[Sequence[float]], level: float) -> tuple[Window, ...]:
    """Runs of two or more neighbouring layers of which every pair is at least this similar, from the lowest up.

    Each run is as long as it can be from where it starts; the next begins above it.
    """
    found, first = [], 0
    while first < len(matrix):
        last = first
        while last + 1 < len(matrix) and min(matrix[layer][last + 1] for layer in range(first, last + 1)) >= level:
            last += 1
        if last > first:
            found.append(Window(first, last))
        first = last + 1
    return tuple(found)


def pair_sentence(matrix: Sequence[Sequence[float]], low: int, high: int, metric: str) -> str:
    """What the similarity of two layers says, in words."""
    if low == high:
        return f"Layer {low} with itself: always 1. Click beside the diagonal to compare two layers."
    value = matrix[low][high]
    pairs = [matrix[i][j] for i in range(len(matrix)) for j in range(i)]
    rank = sum(other > value for other in pairs) + 1
    return f"Layers {low} and {high}: {metric} {value:.4f}, rank {rank:,} of {len(pairs):,} pairs. Their outputs " + (
        "carry nearly the same information." if value >= 0.95 else "share a part." if value >= 0.5 else "differ."
    )


def known_similarity(path: ThresholdPath, plan: MergePlan) -> float | None:
    """The similarity of a plan, however it came about, if it has been computed."""
    if not plan.windows:
        return 1.0
    key = (plan.windows[1:], plan.windows[0])
    return None if key in path.bounds else path.similarities.get(key)
