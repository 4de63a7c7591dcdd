"""Which layers are trained."""

from __future__ import annotations

from swm.plan import MergePlan

LAST = 3  # layers that "last" trains, as in arXiv:2411.15558


def adapted_layers(plan: MergePlan, adapt: str) -> list[int]:
    """The layers of the merged model that are trained.

    Args:
        adapt: "all", "last", "above" (from two layers below the lowest merged one upward), or else merged layers and
            their neighbours.
    """
    all_layers = range(plan.layers_left)
    if adapt == "last":
        return list(all_layers[-LAST:])
    merged = [new for new, window in enumerate(plan.kept_layers()) if len(window) > 1]
    if adapt == "all" or not merged or plan.windows[0].first < 0:  # lowest layers dropped: every input changes
        return list(all_layers)
    if adapt == "above":
        return [layer for layer in all_layers if layer >= merged[0] - 2]
    return [layer for layer in all_layers if any(abs(layer - new) <= 1 for new in merged)]
