"""The last layer, unchanged, with its own norms."""

from swm.registry import MERGE_RULES, MergeRule

MERGE_RULES.register(
    MergeRule(
        "keep_last",
        "keep the last layer",
        "the last layer, unchanged, norms included; the others are dropped",
        base="last",
    )
)
