"""The first layer, and a factor for the state after it; see `swm.merging.scale`."""

from swm.registry import MERGE_RULES, MergeRule

MERGE_RULES.register(
    MergeRule(
        "scale",
        "keep the first layer, rescaled (scale)",
        "the first layer, unchanged, and what the layers above add divided so that the state has its former size: "
        "magnitude compensation of Prune&Comp. Not in the paper",
        needs_text=True,
    )
)
