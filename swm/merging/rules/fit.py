"""The first layer, its last projection solved by least squares on text; see `swm.merging.fit`."""

from swm.registry import MERGE_RULES, MergeRule

MERGE_RULES.register(
    MergeRule(
        "fit",
        "least-squares fit (fit)",
        "the first layer, its last projection solved on text to reproduce the window's output. Not in the paper",
        needs_text=True,
    )
)
