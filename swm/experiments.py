"""Experiments and runs: folders and JSON on disk. The pages read them, the stages write them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from swm.errors import ExperimentError, JobError, PlanError, SettingsError
from swm.files import demo_experiment, disk_errors, home, read_json, write_json
from swm.plan import PLANS_VERSION, MergePlan
from swm.schemas import SHAPES, check_like, is_like
from swm.search import ThresholdPath

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
BASELINE = "baseline"
RESULTS = ("scores", "documents", "timing")
SHIPPED = Path(__file__).parents[1] / "assets" / "experiments"
HEARTBEAT_SECONDS = 3.0
STALE_SECONDS = 60.0
ACTIVE = ("queued", "running")


@dataclass(frozen=True)
class Settings:
    """What an experiment measures: the model and its calibration text."""

    model: str
    texts: str = "lambada"
    count: int = 10
    length: int = 128
    seed: int = 1234
    dtype: str = "auto"


@dataclass(frozen=True)
class State:
    """Where a stage stands; written by the job, read by everybody.

    Times are seconds since the epoch. `pid` and `process_started` name the process on `host`.
    """

    stage: str = ""
    status: str = ""
    done: int = 0
    total: int = 0
    text: str = ""
    error: str = ""
    started: float = 0.0
    heartbeat: float = 0.0
    pid: int = 0
    process_started: float = 0.0
    host: str = ""
    memory_bytes: int = 0
    cpu_percent: float = 0.0
    gpu_memory_bytes: int = 0
    command: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        return self.status in ACTIVE

    @property
    def seconds(self) -> float:
        return max(0.0, self.heartbeat - self.started)

    def seen_from_here(self) -> State:
        """The same state, `interrupted` if its process has ended without saying so."""
        if self.active and not self._process_lives():
            return replace(self, status="interrupted", error="The process ended before the stage did. Start it again.")
        return self

    def _process_lives(self) -> bool:
        if self.host != socket.gethostname():
            return time.time() - self.heartbeat < STALE_SECONDS
        try:
            process = psutil.Process(self.pid)
            # A finished child that nobody has waited for still has a pid; a reused pid has another start time.
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.process_started) < 2
        except psutil.Error:
            return False


def this_process() -> dict[str, Any]:
    """The fields of State that name the process that calls."""
    process = psutil.Process()
    return {"pid": process.pid, "process_started": process.create_time(), "host": socket.gethostname()}


class _Tracked:
    """A folder with a state of its own: an experiment or a run."""

    folder: Path
    name: str

    @property
    def read_only(self) -> bool:
        return SHIPPED in self.folder.parents or bool(demo_experiment())

    def state(self) -> State:
        file = self.folder / "state.json"
        if not file.exists():
            return State()
        try:
            data = read_json(file)
            check_like(data, "state.json", str(file))
            known = {name: data[name] for name in asdict(State()) if name in data}
            return State(**{**known, "command": tuple(known.get("command", ()))}).seen_from_here()
        except (ExperimentError, TypeError, ValueError) as error:
            # The state only tells; what a job made lies in other files.
            return State("job", "failed", error=f"What it did cannot be read: {error}")

    def write_state(self, state: State) -> None:
        write_json(self.folder / "state.json", asdict(state))

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the job's log."""
        file = self.folder / "job.log"
        if not file.exists():
            return ""
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - 200 * lines))
            text = stream.read().decode("utf-8", "replace")
        return "\n".join(re.split(r"[\r\n]+", text.rstrip())[-lines:])

    def _json(self, name: str) -> dict[str, Any] | None:
        """One of our files, if it is there and what it should be."""
        file = self.folder / name
        if not file.exists():
            return None
        data = read_json(file)
        if (kind := name.split("/")[0]) in SHAPES:
            check_like(data, kind, str(file))
        return data

    def _check_writable(self) -> None:
        if self.read_only:
            raise ExperimentError(read_only_message(self.folder.name))


class Experiment(_Tracked):
    """A model, a calibration text and what was measured with them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        data = read_json(folder / "experiment.json")
        check_like(data, "experiment.json", str(folder / "experiment.json"))
        try:
            self.settings = Settings(**data["settings"])
            self.model_facts: dict[str, Any] = dict(data["model_facts"])
            self.layer_count = int(self.model_facts["layers"])
            self.created = float(data["created"])
        except (KeyError, TypeError, ValueError) as error:
            raise ExperimentError(
                f"{folder / 'experiment.json'} is damaged ({error}). Delete the folder {folder} and create it again."
            ) from None

    @classmethod
    def create(cls, name: str, settings: Settings, model_facts: dict[str, Any]) -> Experiment:
        """A new folder for an experiment; `model_facts` as from `models.config_facts`."""
        folder = check_new(name)
        if demo_experiment():
            raise ExperimentError(read_only_message(name))
        data = {"settings": asdict(settings), "model_facts": model_facts, "created": time.time()}
        write_json(folder / "experiment.json", data)
        return cls(folder)

    @classmethod
    def open(cls, name: str) -> Experiment:
        """An experiment by name; the one that ships with the program when the user has none of that name."""
        check_name(name)
        for parent in (experiments_folder(), SHIPPED):
            if (parent / name / "experiment.json").is_file():
                return cls(parent / name)
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
        self._check_writable()
        write_json(self.folder / "similarity" / f"{metric}.json", data)

    def path(self, rule: str) -> ThresholdPath | None:
        """The threshold path as far as it has been computed."""
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
        self._check_writable()
        write_json(self.folder / "cost.json", cost)

    def changed(self, name: str) -> int:
        """When one of its files was written last, in nanoseconds; 0 if there is none."""
        file = self.folder / name
        return file.stat().st_mtime_ns if file.is_file() else 0

    def rules_searched(self) -> list[str]:
        return sorted(file.stem for file in (self.folder / "path").glob("*.json"))

    def save_path(self, path: ThresholdPath) -> None:
        self._check_writable()
        write_json(self.folder / "path" / f"{path.rule}.json", path.to_dict())

    def planned(self, planner: str, layers: int) -> dict[str, Any] | None:
        """A planner's plan with so many layers, if it was found before."""
        data = self._json(f"plans/{planner}-{layers}.json")
        return data if data and data.get("version") == PLANS_VERSION else None

    def save_planned(self, planner: str, layers: int, data: dict[str, Any]) -> None:
        self._check_writable()
        write_json(self.folder / "plans" / f"{planner}-{layers}.json", data)

    def study(self, kind: str) -> dict[str, Any] | None:
        """What a study's last pass left: its grid, and the cells that cannot be."""
        return self._json(f"studies/{kind}.json")

    def save_study(self, kind: str, data: dict[str, Any]) -> None:
        self._check_writable()
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
        for file in sorted((self.folder / "runs").glob("*/run.json")):
            run = Run(self, file.parent.name)
            if run.is_baseline or not NAME.fullmatch(run.name):
                continue
            try:
                _ = run.plan
                found.append(run)
            except ExperimentError as error:
                broken.append(str(error))
        return found, broken

    def create_run(
        self,
        name: str,
        plan: MergePlan,
        threshold: float | None = None,
        similarity: float | None = None,
        method: str | None = None,
    ) -> Run:
        """A new run with its plan, and the method that found it; an existing one with the same plan is given back."""
        self._check_writable()
        if check_name(name) == BASELINE:
            raise ExperimentError(f"{BASELINE} is the original model. Choose another name for the run.")
        run = Run(self, name)
        if (run.folder / "run.json").is_file():
            if run.plan == plan:
                return run
            if run.stage != "planned":
                raise ExperimentError(f"There is a run {name} with another plan. Choose another name.")
        data = {"plan": plan.to_dict(), "threshold": threshold, "similarity": similarity, "created": time.time()}
        write_json(run.folder / "run.json", {**data, **({"method": method} if method else {})})
        return run


class Run(_Tracked):
    """One plan's life inside an experiment: merged, recovered, evaluated."""

    def __init__(self, experiment: Experiment, name: str) -> None:
        self.experiment, self.name = experiment, name
        self.folder = experiment.folder / "runs" / name

    @property
    def is_baseline(self) -> bool:
        return self.name == BASELINE

    @property
    def settings(self) -> dict[str, Any]:
        """What run.json says: plan, threshold, and the settings of the stages that ran."""
        return self._json("run.json") or {}

    @property
    def plan(self) -> MergePlan:
        if self.is_baseline:
            return MergePlan(self.experiment.layer_count)
        try:
            return MergePlan.from_dict(self.settings["plan"])
        except (KeyError, TypeError, ValueError, SettingsError, PlanError) as error:
            raise ExperimentError(
                f"{self.folder / 'run.json'} is damaged ({error}). Delete the folder {self.folder} and merge again."
            ) from None

    def remember(self, **settings: Any) -> None:
        """Add the settings of a stage to run.json."""
        self._check_writable()
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
        self._check_writable()
        write_json(self.folder / f"{name}.json", data)

    def set_aside_scores(self, keep: bool) -> None:
        """Another model takes the place of the one these scores are of; keep them under another name, or not at all."""
        self._check_writable()
        for name in RESULTS:
            file = self.folder / f"{name}.json"
            if keep and file.exists():
                file.replace(self.folder / f"{name}-merged.json")
            file.unlink(missing_ok=True)

    def forget_recovery(self) -> None:
        """The run is merged anew: scores, recovery and checkpoints were of another model."""
        self.set_aside_scores(keep=False)
        for name in RESULTS:
            (self.folder / f"{name}-merged.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "recovery", ignore_errors=True)
        self.clear_events()
        settings = {key: value for key, value in self.settings.items() if not key.startswith("recovery")}
        write_json(self.folder / "run.json", settings)

    def add_event(self, **event: Any) -> None:
        self._check_writable()
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")

    def clear_events(self) -> None:
        (self.folder / "events.jsonl").unlink(missing_ok=True)

    def events(self) -> list[dict[str, Any]]:
        """What the stages told while they ran; a line that is being written is left out."""
        file = self.folder / "events.jsonl"
        return list(_json_lines(file.read_text(encoding="utf-8", errors="replace"))) if file.exists() else []


def _json_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if is_like(row, "event"):
            yield row


def read_only_message(name: str) -> str:
    if demo_experiment():
        return f"{name} cannot be changed: this is a demo, started with SWM_DEMO, and everything in it is read-only."
    return (
        f"{name} belongs to the results that ship with the program: it is read-only and cannot be changed. "
        "Create an experiment of your own: "
        f"python -m swm create NAME --model smollm2-135m"
    )


def experiments_folder() -> Path:
    return home() / "experiments"


def check_name(name: str) -> str:
    """The name itself, if it can be one.

    Raises:
        ExperimentError: for anything but lower-case letters, digits and hyphens, at most 64, no hyphen first.
    """
    if not NAME.fullmatch(name):
        raise ExperimentError(
            f"'{name[:80]}' cannot be a name. Use 1 to 64 lower-case letters, digits and hyphens; "
            "start with a letter or digit."
        )
    return name


def check_new(name: str) -> Path:
    """Folder for a new experiment of that name; raises ExperimentError if there is one already."""
    folder = experiments_folder() / check_name(name)
    if folder.exists():
        raise ExperimentError(f"There is an experiment {name} already. Choose another name, or delete {folder}.")
    return folder


def list_names() -> list[str]:
    """Names of the user's experiments, newest first, then those that ship with the program."""
    own = [file.parent for file in experiments_folder().glob("*/experiment.json") if NAME.fullmatch(file.parent.name)]
    own.sort(key=lambda folder: (folder / "experiment.json").stat().st_mtime, reverse=True)
    shipped = sorted(file.parent for file in SHIPPED.glob("*/experiment.json"))
    names = [folder.name for folder in own]
    return names + [folder.name for folder in shipped if folder.name not in names]


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
    """Remove an experiment or run with everything in it."""
    item._check_writable()
    if isinstance(item, Run) and item.is_baseline:
        raise ExperimentError(f"{BASELINE} is the original model and stays. Delete the whole experiment instead.")
    for each in [item, *(item.runs() if isinstance(item, Experiment) else [])]:
        if each.state().active:
            raise JobError(f"{each.name} has a job running. Cancel it first.")
    with disk_errors(item.folder, 0):
        shutil.rmtree(item.folder)
