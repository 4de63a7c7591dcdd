"""Which layers get adapters."""

from __future__ import annotations

from swm.plan import MergePlan


def adapted_layers(plan: MergePlan, adapt: str) -> list[int]:
    """The layers of the merged model that get adapters.

    Args:
        adapt: "all", "above" (from two layers below the lowest merged one upward), or else merged layers and their
            neighbours.
    """
    all_layers = range(plan.layers_left)
    merged = [new for new, window in enumerate(plan.kept_layers()) if len(window) > 1]
    if adapt == "all" or not merged or plan.windows[0].first < 0:  # lowest layers dropped: every input changes
        return list(all_layers)
    if adapt == "above":
        return [layer for layer in all_layers if layer >= merged[0] - 2]
    return [layer for layer in all_layers if any(abs(layer - new) <= 1 for new in merged)]
