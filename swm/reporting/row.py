"""The central record of the product: what is known of a run at one stage, and of how it differs from others."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, TypedDict

from typing_extensions import NotRequired

from swm.evaluation.paired import ACCURACY
from swm.plan import WidthCut, Window
from swm.workspace.runs import BASELINE


class Range(TypedDict):
    """A value with the ends of its 95 % interval, or of its repetitions."""

    value: float
    low: float
    high: float


class Perplexity(TypedDict):
    """Perplexity on a text; of a single segment without an interval, of early releases without the text's facts."""

    value: float
    low: NotRequired[float]
    high: NotRequired[float]
    texts: NotRequired[int]
    length_tokens: NotRequired[int]
    text_hash: NotRequired[str]
    losses: NotRequired[list[float]]


class TaskScore(TypedDict):
    """Score of a task: the share of right answers, its error, what it is of, and the continuous scores if known."""

    value: float
    stderr: float
    metric: str
    documents: int
    chance: float | None
    choice_logprob: NotRequired[Range | None]
    bits_per_byte: NotRequired[Range | None]


class Change(TypedDict):
    """A difference of a score with its 95 % interval, and how much of that is due to documents and to seeds."""

    difference: float
    low: float
    high: float
    verdict: str
    tasks: int
    documents: int
    fewest: int
    over_documents: NotRequired[list[float]]
    over_seeds: NotRequired[list[float]]


class Ratio(TypedDict):
    """A ratio of perplexities with its 95 % interval."""

    ratio: float
    low: float
    high: float
    paired: bool
    over_documents: NotRequired[list[float]]
    over_seeds: NotRequired[list[float]]


@dataclass(frozen=True)
class Differences:
    """How a model differs from another one, over the same documents and texts.

    Attributes:
        reference: name of the other one.
        scores: by score, see `evaluation.paired.SCORES`: of the tasks' average, or of the only task.
        perplexity: by text.
        above_chance: the accuracy of the tasks alone that the original answers better than by guessing; None if these
            are all tasks, or none.
        not_compared: a sentence for each number that was measured on both sides, but not on the same documents.
    """

    reference: str
    scores: dict[str, Change]
    perplexity: dict[str, Ratio]
    above_chance: Change | None = None
    not_compared: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        above = {"above_chance": self.above_chance} if self.above_chance else {}
        parts = {"scores": self.scores, "perplexity": self.perplexity, "not_compared": [*self.not_compared]}
        return {"from": self.reference, **parts, **above}


class Verdict(NamedTuple):
    """What was removed and what that gained, in one sentence; and what it cost, which may be empty."""

    gained: str
    cost: str

    def __str__(self) -> str:
        return " ".join(filter(None, self))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run at one stage; None where something was not measured, or does not apply.

    Attributes:
        stage: "original", "merged", "recovered", or "planned" before there is a model.
        size_bytes: of the weights on disk.
        healed_by: "LoRA", or "training" of the layers' own weights.
        control, control_run: whether it is the original model, healed; and the control of a healed run.
        fitted_first: whether merged layers were fitted before healing.
        method, chosen_by: of the study that made it; and the planner, or the merge rule of a threshold search.
        perplexity: on the first text that was measured, `perplexity_text`.
        perplexities, scores: by text and by task.
        shared_texts: perplexity texts that were also used to plan or heal it, and for which of these: not independent.
        averages: over tasks, of the continuous scores.
        tasks_above_chance: those that the original answers better than by guessing.
        throughput: tokens per second by batch size.
        timed_with, timed_as, timed_on: the original's speed, measured in turn; the row of the same shape that was timed
            instead; and on what.
        llama_cpp: figures of its GGUF file in llama.cpp, with the original's under `baseline`.
        conditions: of the scores.
        deltas: from the original: of the same text, of averages over the same documents, of speed measured in turn.
        not_compared: a sentence for each delta that is None although it was measured.
        before_recovery: the same run before it was healed, if it was evaluated then.
        seeds: of the models that the row averages; `runs` are their names, `average_by_seed` their accuracies.
        against_original, against_control, verdict: of `judged`.
        against_pinned: the differences from a row that the user chose.
        against: the differences from `against_method`, in a study.
    """

    experiment: str
    run: str
    stage: str
    layers: int
    parameters: int
    size_bytes: int
    healed_by: str | None
    control: bool
    control_run: str | None
    windows: tuple[Window, ...]
    fitted_first: bool
    rule: str | None
    threshold: float | None
    width: WidthCut
    method: str | None
    chosen_by: str
    perplexity: float | None
    perplexities: dict[str, Perplexity]
    perplexity_text: str | None
    seed: int | None
    recovery_text: str | None
    shared_texts: dict[str, str]
    scores: dict[str, TaskScore]
    samples: list[dict[str, str]]
    average: float | None
    average_stderr: float | None
    average_choice_logprob: float | None
    averages: dict[str, Range | None]
    tokens_per_second: float | None
    latency_ms: float | None
    peak_memory_bytes: int | None
    speedup: Range | None
    throughput: dict[str, float]
    llama_cpp: dict[str, Any] | None
    conditions: dict[str, Any]
    created: float
    timed_with: dict[str, Any]
    timed_as: str | None
    timed_on: dict[str, Any]
    dtype: str | None
    tasks_above_chance: tuple[str, ...] = ()
    deltas: dict[str, Any]
    not_compared: tuple[str, ...] = ()
    before_recovery: Row | None = None
    seeds: tuple[int, ...] = ()
    runs: tuple[str, ...] = ()
    average_by_seed: tuple[float, ...] = ()
    against_original: Differences | None = None
    against_control: Differences | None = None
    against_pinned: Differences | None = None
    against_method: str | None = None
    against: Differences | None = None
    verdict: Verdict | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies it: experiment, run and stage."""
        return self.experiment, self.run, self.stage

    @property
    def is_original(self) -> bool:
        """Whether it is the experiment's original model."""
        return self.run == BASELINE

    @property
    def accuracy(self) -> tuple[float, float, float] | None:
        """The average accuracy in percent with the ends of its 95 % interval."""
        known = self.average is not None and self.average_stderr is not None
        return percent_interval(self.average or 0.0, self.average_stderr or 0.0) if known else None

    @property
    def stages(self) -> tuple[Row, ...]:
        """The row before recovery, if there is one, and this one."""
        return (self,) if self.before_recovery is None else (self.before_recovery, self)

    @property
    def compared_with(self) -> Differences | None:
        """The differences from its control if there are results to compare, otherwise from the original."""
        return self.against_control or self.against_original

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: what `judged` and studies add is left out of other rows."""
        data = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ADDED}
        data |= {"width": asdict(self.width), "windows": [[window.first, window.last] for window in self.windows]}
        data |= {name: [*data[name]] for name in ("tasks_above_chance", "not_compared")}
        if self.before_recovery:
            data["before_recovery"] = self.before_recovery.to_dict()
        if self.runs:
            data.setdefault("before_recovery", None)
            data |= {name: [*getattr(self, name)] for name in ("seeds", "runs", "average_by_seed")}
            data["against"] = self.against and {
                "method": self.against_method,
                **{name: self.difference and self.difference[name] for name in DIFFERENCE},
                **self.against.to_dict(),
            }
        if self.verdict:
            references = {name: getattr(self, name) for name in ("against_original", "against_control")}
            data |= {name: found and found.to_dict() for name, found in references.items()}
            data["verdict"] = str(self.verdict)
        return data

    @property
    def difference(self) -> Change | None:
        """The difference of the average accuracy from the studied method that it is compared with."""
        return self.against.scores.get(ACCURACY) if self.against else None


DIFFERENCE: tuple[Literal["difference", "low", "high", "documents"], ...] = ("difference", "low", "high", "documents")
JUDGED = ("against_original", "against_control", "against_pinned", "verdict")
ADDED = ("before_recovery", "seeds", "runs", "average_by_seed", "against", "against_method", *JUDGED)


def percent_interval(value: float, stderr: float) -> tuple[float, float, float]:
    """A share and the ends of its 95 % interval, in percent; no end beyond 0 or 100."""
    return 100 * value, max(0.0, 100 * (value - 1.96 * stderr)), min(100.0, 100 * (value + 1.96 * stderr))
