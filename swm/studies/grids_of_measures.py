"""Grids of studies that make no runs: thresholds, and texts. No torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from swm.checked import Many, checked
from swm.errors import SettingsError
from swm.evaluation.task_names import Limit
from swm.registry import MERGE_RULES
from swm.settings import SKIPPED_TOKENS
from swm.similarity.measure import Measure


def _not_none(value: Any) -> Any:
    if value is None:
        raise ValueError("must be a number (got None)")
    return value


@checked
class ThresholdGrid:
    """The grid of the study of thresholds.

    Attributes:
        low: lowest threshold of the paths; None computes no whole paths, only the walks at `scored_at`.
        scored_at: thresholds whose plans are scored on `limit` documents of `task` (None: all documents).
    """

    rules: Many[str]
    low: Annotated[float | None, BeforeValidator(_not_none)] = Field(default=None, alias="from")
    scored_at: Many[float] = ()
    task: str = "hellaswag"
    limit: Limit = 100

    def __post_init__(self) -> None:
        for rule in self.rules:
            MERGE_RULES.check(rule)
        if self.low is None and not self.scored_at:
            raise SettingsError("The grid has no thresholds. Set from (for whole paths) or scored_at.")
        if self.low is not None and not 0 < self.low <= 1:
            raise SettingsError(f"from: {self.low} is out of range. Use a value above 0 and at most 1.")
        for threshold in self.scored_at:
            if not (self.low or 0) <= threshold <= 1 or not threshold:
                allowed = f"from {self.low} to 1" if self.low else "above 0 and at most 1"
                raise SettingsError(f"Threshold {threshold} of scored_at is out of range. Use a value {allowed}.")

    def scores_in(self, kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows among a study's saved scores that belong to this grid."""
        rows = [row for row in kept if (row["task"], row["limit"]) == (self.task, self.limit)]
        return [row for row in rows if row["rule"] in self.rules and row["threshold"] in self.scored_at]


@checked
class TextsGrid:
    """The grid of the study of texts: layer similarity is measured on each of them."""

    metric: str
    texts: Many[str]

    def __post_init__(self) -> None:
        _ = self.measures

    @property
    def measures(self) -> list[Measure]:
        """The similarity measure for each text."""
        return [Measure(self.metric, skip_tokens=SKIPPED_TOKENS, texts=text) for text in self.texts]
