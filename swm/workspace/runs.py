"""Runs: one plan's life inside an experiment, as files on disk."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from swm.disk.files import clean_up, matching, write_json, written_at
from swm.errors import ExperimentError, PlanError, SettingsError, UnknownNameError
from swm.plan import MergePlan
from swm.workspace.reading import checked_file, once_for_each_writing, uninstalled_message
from swm.workspace.records import is_record
from swm.workspace.task_answers import Answers, read_answers, save_answers
from swm.workspace.tracked import Tracked

if TYPE_CHECKING:
    from swm.workspace.experiments import Experiment

T = TypeVar("T")
BASELINE = "baseline"


RESULTS = ("scores", "documents", "timing", "llama_cpp", "abilities")


KEPT_ADAPTER = "adapter-before"  # adapter of the current healed model, kept while it is healed again


PROMISED = ".promised"  # token file in a model folder that run.json does not describe yet


class Run(Tracked):
    """One plan's life inside an experiment: merged, recovered, evaluated."""

    def __init__(self, experiment: Experiment, name: str) -> None:
        self.experiment, self.name = experiment, name
        self.folder = experiment.folder / "runs" / name

    @property
    def is_baseline(self) -> bool:
        """Whether it is the original model."""
        return self.name == BASELINE

    @property
    def merges_nothing(self) -> bool:
        """Whether its plan leaves the original model as it is."""
        return not self.is_baseline and not self.plan.windows and not self.plan.width.ratio

    @property
    def is_control(self) -> bool:
        """Whether it is the original model, healed: what healed models are compared with."""
        return self.stage == "recovered" and self.merges_nothing

    @property
    def full_name(self) -> str:
        """Its name with that of its experiment."""
        return f"{self.experiment.name} / {self.name}"

    @property
    def owner(self) -> str:
        """The experiment's owner."""
        return self.experiment.owner

    def is_there(self) -> bool:
        """Whether the run still exists."""
        return self.experiment.is_there() and (self.is_baseline or (self.folder / "run.json").is_file())

    @property
    def settings(self) -> dict[str, Any]:
        """What run.json says: plan, threshold, and the settings of the stages that ran."""
        return self.read("run.json") or {}

    @property
    def plan(self) -> MergePlan:
        """Its plan; raises ExperimentError if run.json is damaged."""
        if self.is_baseline:
            return MergePlan(self.experiment.layer_count)
        return _plan_in(self.folder / "run.json")

    def check_plan(self, plan: MergePlan) -> None:
        """Raise ExperimentError if the run has another plan, which another process gave it meanwhile."""
        if self.plan != plan:
            raise ExperimentError(
                f"Another process gave run {self.name} another plan ({self.plan}; requested: {plan}). Choose another "
                "name."
            )

    @property
    def origin(self) -> dict[str, Any]:
        """What chose its windows: `planner`, its `settings`, and the `source`."""
        settings = self.settings
        kept: dict[str, Any] | None = settings.get("origin")
        return kept or self.experiment.origin_of(self.plan, settings.get("threshold"), settings.get("method"))

    @property
    def source(self) -> str:
        """What chose its windows, with the publication."""
        return str(self.origin["source"])

    def remember(self, **settings: Any) -> None:
        """Add the settings of a stage to run.json."""
        self.check_writable()
        write_json(self.folder / "run.json", {**self.settings, **settings})

    @property
    def model_folder(self) -> Path:
        """Folder of its merged or healed model."""
        return self.folder / "model"

    @property
    def has_model(self) -> bool:
        """Whether it has a saved model."""
        return (self.model_folder / "config.json").is_file()

    @property
    def stage(self) -> str:
        """How far the run has come: "original", "planned", "merged" or "recovered"."""
        if self.is_baseline:
            return "original"
        settings = self.settings
        return "recovered" if "recovery" in settings else "merged" if "merge" in settings else "planned"

    @property
    def is_evaluated(self) -> bool:
        """Whether it has scores."""
        return (self.folder / "scores.json").is_file()

    def checkpoint_step(self) -> int:
        """The step of the last checkpoint of an unfinished recovery; 0 if there is none."""
        saved = matching(self.folder, "recovery/checkpoint-*/trainer_state.json")
        steps = [int(file.parent.name.split("-")[1]) for file in saved]
        return max(steps, default=0) if self.settings.get("recovery_started") else 0

    def scores(self) -> dict[str, Any] | None:
        """The content of scores.json; None if the run was not evaluated."""
        return self.read("scores.json")

    def is_scored(self, tasks: Iterable[str], limit: int | None) -> bool:
        """Whether it has scores of these tasks on `limit` documents each; only equal limits can be compared."""
        scores = self.scores()
        return scores is not None and scores["limit"] == limit and set(tasks) <= set(scores["tasks"])

    def timing(self) -> dict[str, Any] | None:
        """The content of timing.json; None if the run was not timed."""
        return self.read("timing.json")

    def in_llama_cpp(self) -> dict[str, Any] | None:
        """The content of llama_cpp.json: its speed there; None if it was not timed there."""
        return self.read("llama_cpp.json")

    def documents(self, before_recovery: bool = False) -> dict[str, Any]:
        """Under `tasks`, a row for each document of each task, as `TaskScore.answers`; empty if it was not evaluated.

        Older files hold the rows themselves, without log-likelihoods.
        """
        name = self._documents(before_recovery)
        tasks = (self.read(name) or {}).get("tasks", {})
        return {"tasks": {task: self._answers(name, entry) for task, entry in tasks.items()}} if tasks else {}

    def documents_changed(self, before_recovery: bool = False) -> int:
        """When the answers of `documents` were last written, in nanoseconds; 0 if there are none."""
        return written_at(self.folder / self._documents(before_recovery))

    @staticmethod
    def _documents(before_recovery: bool) -> str:
        return f"documents{'-merged' if before_recovery else ''}.json"

    def _answers(self, name: str, entry: Any) -> list[dict[str, Any]]:
        if isinstance(entry, list):
            return entry
        try:
            return read_answers(self.experiment.folder / "questions", entry)
        except ValueError as error:
            raise ExperimentError(f"{self.folder / name} cannot be read: {error}. Evaluate the run again.") from None

    def save_documents(self, tasks: Mapping[str, Answers]) -> None:
        """Write documents.json, and the questions to the experiment."""
        self.check_writable()
        folder = self.experiment.folder / "questions"
        self.save("documents", {"tasks": {task: save_answers(folder, task, rows) for task, rows in tasks.items()}})

    def scores_before_recovery(self) -> dict[str, Any] | None:
        """Scores of the merged model, before healing."""
        return self.read("scores-merged.json")

    def timing_before_recovery(self) -> dict[str, Any] | None:
        """Timing of the merged model, before healing."""
        return self.read("timing-merged.json")

    def save(self, name: str, data: dict[str, Any]) -> None:
        """Write one of the run's results, as in `save("scores", {...})`."""
        self.check_writable()
        write_json(self.folder / f"{name}.json", data)

    def promise(self, new_model: Path, settings: dict[str, Any], scores: str) -> None:
        """Record the change to the run that takes effect once `new_model`, a finished folder, replaces its model.

        A model, its entries in run.json and its scores are in several files. To make sure that a kill leaves all of
        them old or all of them new, the new model carries a token: `settle` sees from it whether the model was
        replaced.

        Args:
            settings: to add to run.json; the settings of an earlier recovery are removed.
            scores: what happens to the old model's scores: "aside" keeps them as the scores before recovery, "drop"
                deletes them but keeps the scores before recovery, "forget" deletes both, and the recovery's
                checkpoints.
        """
        self.check_writable()
        token = uuid.uuid4().hex
        (new_model / PROMISED).write_text(token, encoding="utf-8")
        self.remember(pending={"token": token, "scores": scores, "settings": settings})

    def settle(self) -> None:
        """Carry out the recorded change if the new model is in place, else discard it; repeatable from any point."""
        settings = self.settings
        pending = settings.pop("pending", None)
        if pending is None:
            return
        token = self.model_folder / PROMISED
        if token.is_file() and token.read_text(encoding="utf-8") == pending["token"]:
            self.discard_scores(pending["scores"])
            settings = {name: value for name, value in settings.items() if not name.startswith("recovery")}
            self.forget_kept_adapter()
            if "plan" in pending["settings"]:  # a new plan, not from a study
                settings.pop("method", None)
            settings |= pending["settings"]
        write_json(self.folder / "run.json", settings)
        token.unlink(missing_ok=True)

    def discard_scores(self, what: str) -> None:
        """Set aside or delete the scores of a model that was replaced; `what` as `scores` in `promise`."""
        for name in RESULTS:
            file, aside = self.folder / f"{name}.json", self.folder / f"{name}-merged.json"
            if what == "aside" and file.exists():
                file.replace(aside)
            file.unlink(missing_ok=True)
            if what == "forget":
                aside.unlink(missing_ok=True)
        if what == "forget":
            self.forget_kept_adapter()
            shutil.rmtree(self.folder / "recovery", ignore_errors=True)
            self.clear_events()

    def keep_adapter(self) -> None:
        """Keep the healed model's adapter in `adapter-before/` while it is healed again."""
        adapter, kept = self.folder / "recovery" / "adapter", self.folder / KEPT_ADAPTER
        if self.stage == "recovered" and adapter.is_dir() and not kept.exists():
            adapter.rename(kept)

    def forget_kept_adapter(self) -> None:
        """Delete the adapter that `keep_adapter` kept."""
        shutil.rmtree(self.folder / KEPT_ADAPTER, ignore_errors=True)

    def mend(self) -> None:
        """Repair what a killed job left; only for a job that holds the run's lock."""
        if self.read_only:
            return
        clean_up(self.folder)
        clean_up(self.folder / "recovery")
        self.settle()

    def add_event(self, **event: Any) -> None:
        """Append a line to events.jsonl."""
        self.check_writable()
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")

    def clear_events(self) -> None:
        """Delete events.jsonl."""
        (self.folder / "events.jsonl").unlink(missing_ok=True)

    def events(self) -> list[dict[str, Any]]:
        """The events that the stages logged; an incomplete line is skipped."""
        try:
            text = (self.folder / "events.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return list(_json_lines(text))

    def read_unless_gone(self, read: Callable[[Run], T]) -> T | None:
        """What `read` makes of the run; None if another process deleted or renamed it before that was done."""
        for last in (False, True):  # it could have been deleted and made again
            try:
                return read(self)
            except (ExperimentError, LookupError, OSError):
                if not self.is_there():
                    return None
                if last:
                    raise
        return None


@once_for_each_writing
def _plan_in(file: Path) -> MergePlan:
    try:
        return MergePlan.from_dict(checked_file(file, "run.json")["plan"])
    except UnknownNameError as error:
        raise ExperimentError(uninstalled_message(file, error)) from None
    except (KeyError, TypeError, ValueError, SettingsError, PlanError) as error:
        raise ExperimentError(
            f"{file} is damaged ({error}). Delete the folder {file.parent} and merge again."
        ) from None


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if is_record(row, "event"):
            yield row
