"""The content of each of our JSON files: one pydantic model per file, so that errors name the file and the entry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError, create_model, model_validator

from swm.checked import Record, explained
from swm.errors import ExperimentError
from swm.settings import ExperimentSettings, RecoverySettings
from swm.workspace.result_records import (
    AbilitiesFile,
    AnswersFile,
    CostFile,
    DocumentsFile,
    Free,
    LlamaCppFile,
    PathFile,
    PlannedFile,
    Positive,
    QuestionsFile,
    ScoresFile,
    SimilarityFile,
    StudyFile,
    TimingFile,
    TriedFile,
)
from swm.workspace.state import State


def _entry(base: type[Record], cls: Any, needed: Iterable[str] = ()) -> Any:
    """A record with the fields of a dataclass; those in `needed` must be present."""
    hints = get_type_hints(cls, include_extras=True)
    entries: Any = {f.name: (hints[f.name], ... if f.name in needed else f.default) for f in fields(cls)}
    return create_model(f"{cls.__name__}Entry", __base__=base, **entries)


SettingsEntry = _entry(Record, ExperimentSettings, [field.name for field in fields(ExperimentSettings)])
StateFile = _entry(Record, State)


class ModelFacts(Record):
    """Facts about a model that are known before it is loaded; see `models.load.config_facts`."""

    layers: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    dtype: str
    parameters: Positive
    parameters_per_layer: Positive
    size_bytes: Positive
    architecture: str = ""
    vocabulary: Annotated[int, Field(ge=0)] = 0  # 0 in older files
    cache_bytes_per_token: Annotated[int, Field(ge=0)] = 0
    layer_kinds: list[str] = Field(default_factory=list)
    layer_parameters: list[Positive] = Field(default_factory=list)
    needed_layers: list[list[int]] | None = None  # None: not known

    @model_validator(mode="after")
    def _layers_that_exist(self) -> ModelFacts:
        for group in self.needed_layers or ():
            if not group or not set(range(self.layers)).issuperset(group):
                raise ValueError(f"needed_layers has {group}, but the layers are 0 to {self.layers - 1}")
        return self


class ExperimentFile(Record):
    """experiment.json."""

    settings: SettingsEntry  # type: ignore[valid-type]
    model_facts: ModelFacts
    created: float
    text_hash: str = ""
    owner: str = ""


class _Recovery(Record):
    trained_parameters: int = 0
    seconds: float = 0.0
    text_hash: str = ""
    examples_hash: str = ""

    @model_validator(mode="after")
    def _trained_with(self) -> _Recovery:
        if "trained_parameters" in self.model_fields_set:
            for name in ("seconds", "rank", "learning_rate"):
                if name not in self.model_fields_set:
                    raise ValueError(f"{name} is missing")
        return self


Recovery = _entry(_Recovery, RecoverySettings, ("preset", "texts", "steps", "batch", "accumulate", "length"))


class Origin(Record):
    """What chose a plan's windows."""

    planner: str
    source: str
    settings: Free


class MergeFacts(Record):
    """The merged model's size, and the seconds that merging took."""

    parameters: int = 0
    size_bytes: int = 0
    seconds: float = 0.0


class Pending(Record):
    """The change to a run that takes effect once its new model is in place; see `Run.promise`."""

    token: str
    scores: str
    settings: Free


class RunFile(Record):
    """run.json: the plan, and the settings of the stages that ran."""

    plan: Free
    threshold: float | None = None
    similarity: float | None = None
    created: float = 0.0
    method: str = ""
    origin: Origin = Origin.model_construct()
    merge: MergeFacts = MergeFacts()
    recovery: Recovery = Recovery.model_construct()  # type: ignore[valid-type]
    recovery_started: Recovery | None = None  # type: ignore[valid-type]
    recovery_base_repaired: str = ""
    unhealed: bool = False
    pending: Pending = Pending.model_construct()


class Event(Record):
    """A line of events.jsonl."""

    step: int
    steps: int
    time: float
    stage: str = ""
    loss: float = 0.0
    held_out_loss: float = 0.0
    learning_rate: float = 0.0
    begun: bool = False


FILES: dict[str, Any] = {
    "experiment.json": ExperimentFile,
    "run.json": RunFile,
    "cost.json": CostFile,
    "tried.json": TriedFile,
    **dict.fromkeys(("scores.json", "scores-merged.json"), ScoresFile),
    **dict.fromkeys(("timing.json", "timing-merged.json"), TimingFile),
    **dict.fromkeys(("llama_cpp.json", "llama_cpp-merged.json"), LlamaCppFile),
    **dict.fromkeys(("documents.json", "documents-merged.json"), DocumentsFile),
    **dict.fromkeys(("abilities.json", "abilities-merged.json"), AbilitiesFile),
    "questions": QuestionsFile,
    "state.json": StateFile,
    "similarity": SimilarityFile,
    "path": PathFile,
    "answers": AnswersFile,
    "plans": PlannedFile,
    "studies": StudyFile,
    "event": Event,
}


def is_record(data: Any, kind: str) -> bool:
    """Whether the data are valid for a file of that kind."""
    try:
        _adapter(kind).validate_python(data)
    except ValidationError:
        return False
    return True


def check_record(data: Any, kind: str, where: str) -> Any:
    """The record in a file's data; raises ExperimentError, naming file and entry, if the data are invalid."""
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        raise ExperimentError(
            f"{where} cannot be read: {explained(error)}. Delete it and repeat the step that wrote it."
        ) from None


@cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(FILES[kind])
