"""Experiments and runs: folders and JSON on disk. The pages read them, the stages write them."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swm.errors import ExperimentError, JobError, PlanError, SettingsError
from swm.files import demo_experiment, remove, set_aside, sweep, write_json
from swm.grids import KINDS, checked_grid, read_grid
from swm.names import EXAMPLE, check_name, check_new, experiments_folder, folders_in, list_names
from swm.path import SEARCH_VERSION, ThresholdPath
from swm.plan import BY_HAND, BY_THRESHOLD, PLANNERS, PLANS_VERSION, SOURCES, MergePlan
from swm.schemas import is_like
from swm.tracked import (
    Tracked,
    checked_file,
    job_lock,
    names_locked,
    once_for_each_writing,
    read_file,
    read_only_message,
    shipped_folders,
)

BASELINE = "baseline"
RESULTS = ("scores", "documents", "timing")
MOST_TOKENS_AT_ONCE = 32_768  # that the first release ran in one pass, on any device
KEPT_ADAPTER = "adapter-before"  # of the healed model that is there, while it is healed otherwise
PROMISED = ".promised"  # in a model folder whose run.json does not know it yet


@dataclass(frozen=True)
class Settings:
    """What an experiment measures: the model and its calibration text."""

    model: str
    texts: str = "lambada"
    count: int = 10
    length: int = 128
    seed: int = 1234
    dtype: str = "auto"


class Experiment(Tracked):
    """A model, a calibration text and what was measured with them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        data = read_file(folder / "experiment.json", "experiment.json")
        try:
            self.settings = Settings(**data["settings"])
            self.model_facts: dict[str, Any] = dict(data["model_facts"])
            self.layer_count = int(self.model_facts["layers"])
            self.created = float(data["created"])
            self.text_hash = str(data.get("text_hash", ""))  # empty in experiments of the first release
        except (KeyError, TypeError, ValueError) as error:
            raise ExperimentError(
                f"{folder / 'experiment.json'} is damaged ({error}). Delete the folder {folder} and create it again."
            ) from None

    @classmethod
    def create(cls, name: str, settings: Settings, model_facts: dict[str, Any], text_hash: str = "") -> Experiment:
        """A new folder for an experiment.

        Args:
            model_facts: as from `models.config_facts`.
            text_hash: of the calibration text, as from `texts.text_hash`: jobs refuse to mix in another text later.
        """
        check_name(name)
        if demo_experiment():
            raise ExperimentError(read_only_message(name))
        data = {"settings": asdict(settings), "model_facts": model_facts, "created": time.time()}
        data |= {"text_hash": text_hash}
        with names_locked():
            folder = check_new(name)
            write_json(folder / "experiment.json", data)
        return cls(folder)

    def is_there(self) -> bool:
        return (self.folder / "experiment.json").is_file()

    def mend(self) -> None:
        """Put right what killed jobs left in it and in its runs; to be called by a job, which keeps others waiting."""
        for folder in (self.folder, self.folder / "runs", self.folder / "path", self.folder / "plans"):
            sweep(folder)
        for run in self.runs():
            if not run.state().active:
                run.mend()

    @classmethod
    def open(cls, name: str) -> Experiment:
        """An experiment by name; one that ships also by its former name, without "example-"."""
        check_name(name)
        shipped = [each for each in shipped_folders() if each.name in (name, f"{EXAMPLE}{name}")]
        for folder in (experiments_folder() / name, *shipped):
            if (folder / "experiment.json").is_file():
                return cls(folder)
        names = ", ".join(list_names()) or "none yet"
        raise ExperimentError(
            f"There is no experiment {name}. There are: {names}. "
            f"Create it: python -m swm create {name} --model smollm2-135m"
        )

    def similarity(self, metric: str) -> dict[str, Any] | None:
        data = self._json(f"similarity/{metric}.json")
        if data and {len(row) for row in [data["matrix"], *data["matrix"]]} != {self.layer_count}:
            raise ExperimentError(f"Similarity {metric} of {self.name} is not of its model's layers. Measure it again.")
        return data

    def metrics_measured(self) -> list[str]:
        """The metrics that are there, the default one first."""
        return sorted(
            (file.stem for file in (self.folder / "similarity").glob("*.json")), key=lambda m: (m != "cka", m)
        )

    def save_similarity(self, metric: str, data: dict[str, Any]) -> None:
        self.check_writable()
        write_json(self.folder / "similarity" / f"{metric}.json", data)

    def path(self, rule: str) -> ThresholdPath | None:
        """The threshold path as far as it has been computed; one that cannot be relied on counts as none."""
        path = self._kept_path(rule)
        return None if path is None or self._doubt_about(path) else path

    def outdated_path(self, rule: str) -> str:
        """Why the kept path of a rule cannot be relied on and has to be computed anew; empty if it can."""
        path = self._kept_path(rule)
        return self._doubt_about(path) if path else ""

    def _doubt_about(self, path: ThresholdPath) -> str:
        tokens = self.settings.count * self.settings.length
        if path.version < SEARCH_VERSION and tokens <= MOST_TOKENS_AT_ONCE:
            return "an earlier release could give windows the scores of others when all texts ran together"
        if path.text_hash != self.text_hash and path.text_hash and self.text_hash:
            return "it was computed on another calibration text"
        return ""

    def _kept_path(self, rule: str) -> ThresholdPath | None:
        data = self._json(f"path/{rule}.json")
        if data is None:
            return None
        try:
            path = ThresholdPath.from_dict(data)
            if (path.layer_count, path.rule) != (self.layer_count, rule):
                raise ValueError(f"it is of {path.layer_count} layers and rule {path.rule}")
            return path
        except (KeyError, TypeError, ValueError, AttributeError, SettingsError) as error:
            raise ExperimentError(
                f"{self.folder / 'path' / rule}.json is damaged ({error}). Delete it and search again."
            ) from None

    def cost(self) -> dict[str, Any] | None:
        """What a generated token of the original costs; None if that was not measured."""
        return self._json("cost.json")

    def save_cost(self, cost: dict[str, Any]) -> None:
        self.check_writable()
        write_json(self.folder / "cost.json", cost)

    def changed(self, name: str) -> int:
        """When one of its files was written last, in nanoseconds; 0 if there is none."""
        file = self.folder / name
        return file.stat().st_mtime_ns if file.is_file() else 0

    def rules_searched(self) -> list[str]:
        return sorted(file.stem for file in (self.folder / "path").glob("*.json"))

    def save_path(self, path: ThresholdPath) -> None:
        self.check_writable()
        write_json(self.folder / "path" / f"{path.rule}.json", path.to_dict())

    def planned(self, planner: str, layers: int) -> dict[str, Any] | None:
        """A planner's plan with so many layers, if it was found before."""
        data = self._json(f"plans/{planner}-{layers}.json")
        if not data or data.get("version") != PLANS_VERSION:
            return None
        return data if data.get("text_hash", "") in ("", self.text_hash) else None

    def save_planned(self, planner: str, layers: int, data: dict[str, Any]) -> None:
        self.check_writable()
        write_json(self.folder / "plans" / f"{planner}-{layers}.json", data)

    def study(self, kind: str) -> dict[str, Any] | None:
        """What a study's last pass left: its grid, and the cells that cannot be."""
        return self._json(f"studies/{kind}.json")

    def grid(self, kind: str, file: Path | None = None) -> dict[str, Any]:
        """A study's grid: the file's; without a file that of the study's last pass, and before one the usual grid.

        Raises:
            SettingsError: if there is no such study, or its grid cannot be read.
        """
        last = (self.study(kind) or {}).get("grid") if kind in KINDS and not file else None
        return checked_grid(kind, last, f"The study of {self.name}") if last else read_grid(kind, file)

    def save_study(self, kind: str, data: dict[str, Any]) -> None:
        self.check_writable()
        write_json(self.folder / "studies" / f"{kind}.json", data)

    def run(self, name: str) -> Run:
        """A run by name. `baseline`, the original model, is always there."""
        check_name(name)
        if name != BASELINE and not (self.folder / "runs" / name / "run.json").is_file():
            names = ", ".join(run.name for run in self.runs())
            raise ExperimentError(
                f"There is no run {name} in {self.name}. There are: {names}. "
                f"Make it: python -m swm merge {self.name} {name} --threshold 0.9"
            )
        return Run(self, name)

    def runs(self) -> list[Run]:
        """The baseline, then the other runs by name; a damaged one is left out."""
        return self.readable_runs()[0]

    def readable_runs(self) -> tuple[list[Run], list[str]]:
        """The runs that can be read, the baseline first, and one message for each that cannot."""
        found, broken = [Run(self, BASELINE)], []
        for name in folders_in(self.folder / "runs"):
            run = Run(self, name)
            if run.is_baseline or not (run.folder / "run.json").is_file():
                continue
            try:
                _ = run.plan
                found.append(run)
            except ExperimentError as error:
                broken.append(str(error))
        return found, broken

    def results_changed(self) -> list[tuple[str, int]]:
        """Every file of its runs, and when it was written last."""
        files = (f"{file.relative_to(self.folder)}" for file in self.folder.glob("runs/*/*.json"))
        return sorted((file, self.changed(file)) for file in files)

    def create_run(
        self,
        name: str,
        plan: MergePlan,
        threshold: float | None = None,
        similarity: float | None = None,
        method: str | None = None,
        origin: dict[str, Any] | None = None,
    ) -> Run:
        """A new run with its plan; an existing one with the same plan is given back.

        Args:
            method: of a study's cell.
            origin: what chose the windows: `planner`, its settings, and `source`; found out if it is not given.
        """
        self.check_writable()
        if check_name(name) == BASELINE:
            raise ExperimentError(f"{BASELINE} is the original model. Choose another name for the run.")
        run = Run(self, name)
        data = {**self.plan_entries(plan, threshold, similarity, method, origin), "created": time.time()}
        with names_locked():
            if (run.folder / "run.json").is_file():
                if run.plan == plan:
                    return run
                if run.stage != "planned":
                    raise ExperimentError(
                        f"There is a run {name} with another plan ({_windows_of(run.plan)}; requested: "
                        f"{_windows_of(plan)}). Choose another name."
                    )
                if run.state().active:
                    raise JobError(f"{name} has a job running with another plan. Wait for it, or choose another name.")
            write_json(run.folder / "run.json", {**data, **({"method": method} if method else {})})
        return run

    def plan_entries(
        self,
        plan: MergePlan,
        threshold: float | None,
        similarity: float | None,
        method: str | None = None,
        origin: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What run.json says of a plan."""
        entries = {"plan": plan.to_dict(), "threshold": threshold, "similarity": similarity}
        return {**entries, "origin": origin or self.origin_of(plan, threshold, method)}

    def origin_of(self, plan: MergePlan, threshold: float | None = None, method: str | None = None) -> dict[str, Any]:
        """What chose a plan's windows: the search at a threshold, a planner that found it here, or a hand."""
        settings = {"texts": self.settings.texts, "count": self.settings.count, "length": self.settings.length}
        settings["seed"] = self.settings.seed
        if threshold is not None or (method and method not in PLANNERS):
            name, settings = BY_THRESHOLD, {**settings, "threshold": threshold}
        else:
            found = self._planned_as(plan, method)
            name = found["planner"] if found else BY_HAND
            if found and "budget" in found:
                settings["budget"] = found["budget"]
        return {"planner": name, "source": SOURCES[name], "settings": {} if name == BY_HAND else settings}

    def _planned_as(self, plan: MergePlan, method: str | None) -> dict[str, Any] | None:
        """The planner's plan that has these windows."""
        windows = plan.to_dict()["windows"]
        for planner in [method] if method else PLANNERS:
            data = self.planned(planner, plan.layers_left)
            if data and windows and [list(pair) for pair in data["windows"]] == windows:
                return data
        return {"planner": method} if method else None


class Run(Tracked):
    """One plan's life inside an experiment: merged, recovered, evaluated."""

    def __init__(self, experiment: Experiment, name: str) -> None:
        self.experiment, self.name = experiment, name
        self.folder = experiment.folder / "runs" / name

    @property
    def is_baseline(self) -> bool:
        return self.name == BASELINE

    def is_there(self) -> bool:
        return self.experiment.is_there() and (self.is_baseline or (self.folder / "run.json").is_file())

    @property
    def settings(self) -> dict[str, Any]:
        """What run.json says: plan, threshold, and the settings of the stages that ran."""
        return self._json("run.json") or {}

    @property
    def plan(self) -> MergePlan:
        if self.is_baseline:
            return MergePlan(self.experiment.layer_count)
        return _plan_in(self.folder / "run.json")

    @property
    def source(self) -> str:
        """The method that chose its windows, with its publication."""
        settings = self.settings
        origin = settings.get("origin") or self.experiment.origin_of(
            self.plan, settings.get("threshold"), settings.get("method")
        )
        return str(origin["source"])

    def remember(self, **settings: Any) -> None:
        """Add the settings of a stage to run.json."""
        self.check_writable()
        write_json(self.folder / "run.json", {**self.settings, **settings})

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @property
    def has_model(self) -> bool:
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
        return (self.folder / "scores.json").is_file()

    def checkpoint_step(self) -> int:
        """The last step of an unfinished recovery that a checkpoint holds; 0 if there is none."""
        steps = [
            int(file.parent.name.split("-")[1]) for file in self.folder.glob("recovery/checkpoint-*/trainer_state.json")
        ]
        return max(steps, default=0) if self.settings.get("recovery_started") else 0

    def scores(self) -> dict[str, Any] | None:
        return self._json("scores.json")

    def timing(self) -> dict[str, Any] | None:
        return self._json("timing.json")

    def documents(self, before_recovery: bool = False) -> dict[str, Any]:
        """The answers to each document of each task; empty if the run was not evaluated."""
        return self._json(f"documents{'-merged' if before_recovery else ''}.json") or {}

    def scores_before_recovery(self) -> dict[str, Any] | None:
        return self._json("scores-merged.json")

    def timing_before_recovery(self) -> dict[str, Any] | None:
        return self._json("timing-merged.json")

    def save(self, name: str, data: dict[str, Any]) -> None:
        """Write one of the run's results, as in `save("scores", {...})`."""
        self.check_writable()
        write_json(self.folder / f"{name}.json", data)

    def promise(self, new_model: Path, settings: dict[str, Any], scores: str) -> None:
        """Say what will hold once `new_model`, a finished folder, has taken the place of the run's model.

        A model, what run.json says of it and its scores lie in several files. So that a kill leaves the old or the new
        of all of them, the new model carries a token, and `settle` finds by it whether the change took place.

        Args:
            settings: to be added to run.json; those of a recovery before are forgotten.
            scores: what becomes of the former model's: "aside" keeps them as those before recovery, "drop" keeps what
                was set aside before and drops the others, "forget" drops both, and the recovery's checkpoints.
        """
        self.check_writable()
        token = uuid.uuid4().hex
        (new_model / PROMISED).write_text(token, encoding="utf-8")
        self.remember(pending={"token": token, "scores": scores, "settings": settings})

    def settle(self) -> None:
        """Carry out what was promised if the new model is there, else forget it. Can be repeated from any point."""
        settings = self.settings
        pending = settings.pop("pending", None)
        if pending is None:
            return
        token = self.model_folder / PROMISED
        if token.is_file() and token.read_text(encoding="utf-8") == pending["token"]:
            self.let_go_of_scores(pending["scores"])
            settings = {name: value for name, value in settings.items() if not name.startswith("recovery")}
            self.forget_kept_adapter()
            if "plan" in pending["settings"]:  # another plan, which no study made
                settings.pop("method", None)
            settings |= pending["settings"]
        write_json(self.folder / "run.json", settings)
        token.unlink(missing_ok=True)

    def let_go_of_scores(self, what: str) -> None:
        """Another model takes the place of the one these scores are of; `what` as in `promise`."""
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
        """Set the adapter of the healed model aside, in `adapter-before/`, while it is healed otherwise."""
        adapter, kept = self.folder / "recovery" / "adapter", self.folder / KEPT_ADAPTER
        if self.stage == "recovered" and adapter.is_dir() and not kept.exists():
            adapter.rename(kept)

    def forget_kept_adapter(self) -> None:
        shutil.rmtree(self.folder / KEPT_ADAPTER, ignore_errors=True)

    def mend(self) -> None:
        """Put right what a killed job left; to be called by a job, which keeps others waiting."""
        if self.read_only:
            return
        sweep(self.folder)
        self.settle()

    def add_event(self, **event: Any) -> None:
        self.check_writable()
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")

    def clear_events(self) -> None:
        (self.folder / "events.jsonl").unlink(missing_ok=True)

    def events(self) -> list[dict[str, Any]]:
        """What the stages told while they ran; a line that is being written is left out."""
        file = self.folder / "events.jsonl"
        return list(_json_lines(file.read_text(encoding="utf-8", errors="replace"))) if file.exists() else []


def list_experiments() -> tuple[list[Experiment], list[str]]:
    """The experiments that can be read, and one message for each that cannot."""
    found, broken = [], []
    for name in list_names():
        try:
            found.append(Experiment.open(name))
        except ExperimentError as error:
            broken.append(str(error))
    return found, broken


def delete(item: Experiment | Run) -> None:
    """Remove an experiment or run with everything in it; others see all of it or nothing.

    Raises:
        ExperimentError: for the baseline, and what is read-only. JobError: while a job works on it.
    """
    item.check_writable()
    if isinstance(item, Run) and item.is_baseline:
        raise ExperimentError(f"{BASELINE} is the original model and stays. Delete the whole experiment instead.")
    above = [item.experiment] if isinstance(item, Run) else []
    below: list[Experiment | Run] = [] if isinstance(item, Run) else [*item.runs()]
    for each in [item, *below, *above]:
        state = each.state()
        if state.active and (each not in above or state.stage in ("study", "demo")):  # these work on all its runs
            raise JobError(f"{each.name} has a job running. Cancel it first.")
    with job_lock(item), names_locked():
        gone = set_aside(item.folder)
    remove(gone)
    sweep(gone.parent, older_than=60)


def _windows_of(plan: MergePlan) -> str:
    return f"windows {', '.join(map(str, plan.windows)) or 'none'}, rule {plan.rule}"


@once_for_each_writing
def _plan_in(file: Path) -> MergePlan:
    try:
        return MergePlan.from_dict(checked_file(file, "run.json")["plan"])
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
        if is_like(row, "event"):
            yield row
