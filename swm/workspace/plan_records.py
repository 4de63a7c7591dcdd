"""The content of the JSON files with plans: those that planners found, and the losses of what they tried."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from swm.checked import Record
from swm.workspace.result_records import Pair


class Finalist(Record):
    """A plan that lost against the chosen one: its perplexity against that one's, with the interval."""

    windows: list[Pair]
    rule: str = ""
    ratio: float
    low: float
    high: float


class Finalists(Record):
    """The last plans that a planner compared, on so many held-out texts; planners that time was too short to ask."""

    texts: int
    others: list[Finalist]
    left_out: list[str] = Field(default_factory=list)


class HalfChoice(Record):
    """What a planner chose on half of the calibration text: its perplexity on all of it."""

    windows: list[Pair]
    perplexity: float


class PlannedFile(Record):
    """plans/<planner>-<layers>.json."""

    layer_count: int
    windows: list[Pair]
    rule: str
    planner: str
    similarity: float | None
    perplexity: float
    perplexity_original: float
    seconds: float
    budget: int = 0
    minutes: float = 0.0
    keep_period: bool = False
    version: int = 0
    text_hash: str = ""
    scoring: str = ""
    finalists: Finalists | None = None
    fitted_in_full: bool = False
    halves: list[HalfChoice] = Field(default_factory=list)


class TriedFile(Record):
    """tried.json: losses of the models without some layers ("3,7"), by kind; see `workspace.tried`."""

    version: int
    text_hash: str
    losses: dict[str, dict[Annotated[str, Field(pattern=r"^\d+(,\d+)*$")], float]]
