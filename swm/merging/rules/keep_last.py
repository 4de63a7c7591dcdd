"""The last layer as it is: what other depth pruners do."""

from swm.registry import MERGE_RULES, MergeRule

MERGE_RULES.register(
    MergeRule(
        "keep_last",
        "keep the last layer",
        "The last layer as it is, norms included; the others are dropped.",
        base="last",
    )
)
