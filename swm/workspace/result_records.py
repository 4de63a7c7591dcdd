"""The content of the JSON files with results: similarities, plans, paths, scores, timing."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from swm.checked import Record

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Pair = Annotated[list[int], Field(min_length=2, max_length=2)]
Free = dict[str, Any]


class Interval(Record):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


class Conditions(Record):
    """The conditions of a measurement."""

    dtype: str
    device: str
    versions: dict[str, str]
    seconds: float = 0.0


class TaskEntry(Record):
    """The score of one task."""

    value: Share
    stderr: Share
    metric: str
    documents: int
    chance: Share | None = None
    choice_logprob: Interval | None = None
    bits_per_byte: Interval | None = None


class Sample(Record):
    """A prompt and what the model generated."""

    prompt: str
    answer: str


class Perplexity(Record):
    """The perplexity of a text, with its interval unless it has a single segment; `losses` are the mean losses of the
    segments, in nats per token."""

    value: Positive
    low: Positive = 1.0
    high: Positive = 1.0
    losses: list[float] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_both_ends(self) -> Perplexity:
        if len({"low", "high"} & self.model_fields_set) == 1:
            raise ValueError("an interval has two ends, low and high")
        return self


class ScoresFile(Record):
    """scores.json, and scores-merged.json with those before recovery."""

    tasks: dict[str, TaskEntry]
    perplexity: dict[str, Perplexity]
    limit: int | None
    samples: list[Sample] = Field(default_factory=list)
    conditions: Conditions = Conditions.model_construct()


class Document(Record):
    """One question of a task, and the answer that the model picked."""

    id: str
    correct: Share
    question: str
    right: str
    picked: str


class AnswerColumns(Record):
    """What a model answered to a task's questions, which are in the experiment's questions/<name>.json."""

    questions: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    correct: list[Share]
    picked: list[int | str]
    log_likelihoods: list[list[float]]


class DocumentsFile(Record):
    """documents.json: the answers to each task's documents; older files hold whole rows."""

    tasks: dict[str, AnswerColumns | list[Document]] = Field(default_factory=dict)


class Question(Record):
    """A question of a task; without choices, `right` is the answer."""

    id: str
    question: str
    choices: list[str] | None = None
    answer: Annotated[int, Field(ge=0)] = 0
    bytes: Annotated[int, Field(ge=1)] | None = None
    right: str = ""

    @model_validator(mode="after")
    def _has_an_answer(self) -> Question:
        if self.choices is not None and not self.answer < len(self.choices):
            raise ValueError(f"answer {self.answer} is not one of {len(self.choices)} choices")
        return self


class QuestionsFile(Record):
    """questions/<hash>.json."""

    questions: list[Question]


class Speed(Record):
    """How fast a model is."""

    tokens_per_second: float = 0.0
    latency_ms: float = 0.0
    peak_memory_bytes: float = 0.0


class TimingFile(Speed):
    """timing.json: a run's speed, and that of the original measured alternately with it."""

    speedup: Interval = Interval.model_construct()
    throughput: dict[str, float] = Field(default_factory=dict)
    baseline: Speed = Speed()


class LlamaCppSpeed(Record):
    """How fast a model is in llama.cpp, and how well its file does."""

    size_bytes: Positive
    prompt_tokens_per_second: Positive
    tokens_per_second: Positive
    perplexity: Positive
    perplexity_exact: Positive


class LlamaCppFile(LlamaCppSpeed):
    """llama_cpp.json: a run's speed in llama.cpp, and that of the original measured in turn with it."""

    type: str
    speedup: Interval = Interval.model_construct()
    prompt_speedup: Interval = Interval.model_construct()


class Rate(Record):
    """How fast a job read or trained; see `estimate.with_rate`."""

    host: str
    device: str
    dtype: str
    kind: str
    tokens_per_second: Positive


class CostFile(Record):
    """cost.json: the time per token of the original; see `evaluation.cost.decode_cost`."""

    layers_ms: Positive
    rest_ms: Positive
    forward_tokens_per_second: Positive = 1.0
    training_tokens_per_second: Positive = 1.0
    observed: list[Rate] = Field(default_factory=list)  # oldest first


class MeasuredOn(Record):
    """The conditions of a similarity measurement."""

    dtype: str
    seconds: float


class SimilarityFile(Record):
    """similarity/<measure>.json."""

    matrix: list[list[float]]
    block_influence: list[float]
    norm: list[float]
    tokens: int
    conditions: MeasuredOn
    norm_median: list[float] = Field(default_factory=list)
    norm_max: list[float] = Field(default_factory=list)
    attention_influence: list[float] = Field(default_factory=list)
    mlp_influence: list[float] = Field(default_factory=list)
    warning: str = ""
    text_hash: str = ""


class Tried(Record):
    """A window tried after those above it were merged, and its similarity."""

    above: list[Pair]
    window: Pair
    similarity: float
    at_most: bool = False
    exact: bool = False


class PlanPerplexity(Record):
    """The perplexity of a plan on the calibration text."""

    windows: list[Pair]
    perplexity: float


class PathFile(Record):
    """path/<rule>.json: see `search.threshold_path.ThresholdPath`."""

    rule: str
    layer_count: int
    low: float
    high: float
    protect_last: int
    similarities: list[Tried]
    perplexities: list[PlanPerplexity] = Field(default_factory=list)
    scoring: str = "exact"
    layer_runs: float = 0.0
    difference: float = 0.0
    version: int = 1
    text_hash: str = ""


class PlanAnswers(Record):
    """What the model of a plan writes after each prompt; no answers if it cannot generate."""

    windows: list[list[int]]
    answers: list[str]


class AnswersFile(Record):
    """answers/<rule>.json: see `search.kept_answers.KeptAnswers`."""

    prompts: list[str]
    tokens: int
    plans: list[PlanAnswers]
    text_hash: str = ""

    @model_validator(mode="after")
    def _answers_every_prompt(self) -> AnswersFile:
        if any(len(plan.answers) not in (0, len(self.prompts)) for plan in self.plans):
            raise ValueError("a plan has more or fewer answers than there are prompts")
        return self


class ThresholdScore(TaskEntry):
    """The score of the plan at one threshold."""

    rule: str
    threshold: float
    layers: int
    windows: list[list[int]]
    task: str
    limit: int | None


class StudyFile(Record):
    """studies/<kind>.json: the grid of the last pass, the cells that failed, and what else was found.

    Attributes:
        within: by method and loss, the layers of the smallest plan within it; `found_by` says by which versions.
    """

    failed: dict[str, str]
    grid: Free
    scores: list[ThresholdScore] = Field(default_factory=list)
    within: dict[str, dict[str, Annotated[int, Field(ge=1)]]] = Field(default_factory=dict)
    found_by: str = ""


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
    keep: str = ""
    kept: Free = Field(default_factory=dict)
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


class AbilityScores(Record):
    """Of each request: bits per byte of the right answer; and where it has choices, the log-probability of the right
    one and the index of the one picked."""

    bits: list[float]
    choice: list[float | None] = Field(default_factory=list)
    picked: list[int | None] = Field(default_factory=list)


class AbilityEntry(Record):
    """Requests of an ability, and how well they were answered, by what was left out."""

    ids: list[str]
    scores: dict[str, AbilityScores]

    @model_validator(mode="after")
    def _is_whole(self) -> AbilityEntry:
        sizes = [(len(s.bits), len(s.choice or s.bits), len(s.picked or s.bits)) for s in self.scores.values()]
        if any(size != len(self.ids) for one in sizes for size in one):
            raise ValueError("the scores are not as many as the requests")
        return self


class AbilitiesFile(Record):
    """abilities.json, of an experiment or a run."""

    version: int
    precision: str
    abilities: dict[str, AbilityEntry]
    conditions: Conditions
