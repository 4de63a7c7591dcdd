"""Which layers get adapters."""

from __future__ import annotations

from swm.plan import MergePlan


def adapted_layers(plan: MergePlan, adapt: str) -> list[int]:
    """The layers of the merged model that get adapters."""
    everything = range(plan.layers_left)
    merged = [new for new, window in enumerate(plan.kept_layers()) if len(window) > 1]
    if adapt == "all" or not merged or plan.windows[0].first < 0:  # without the lowest layers all see other states
        return list(everything)
    if adapt == "above":
        return [layer for layer in everything if layer >= merged[0] - 2]
    return [layer for layer in everything if any(abs(layer - new) <= 1 for new in merged)]
