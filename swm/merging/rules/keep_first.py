"""The first layer, unchanged: the paper's "Delete" (arXiv:2502.19159, ablation of merge rules)."""

from swm.registry import MERGE_RULES, MergeRule

MERGE_RULES.register(
    MergeRule("keep_first", "keep the first layer", "the first layer, unchanged; the others are dropped")
)
