"""Experiments: folders and JSON on disk. The pages read them, the stages write them."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swm.errors import ExperimentError, JobError, SettingsError
from swm.plan import MergePlan
from swm.registry import PLANNERS
from swm.settings import ExperimentSettings
from swm.workspace.files import clean_up, demo_experiment, remove, set_aside, write_json
from swm.workspace.names import (
    EXAMPLE,
    check_name,
    check_new,
    experiments_folder,
    folders_in,
    list_names,
    names_locked,
    read_only_message,
    shipped_folders,
)
from swm.workspace.origin import BY_HAND, BY_THRESHOLD, source_of
from swm.workspace.reading import read_file
from swm.workspace.runs import BASELINE, Run
from swm.workspace.tracked import Tracked, job_lock

PLANS_VERSION = 3  # of what planners do: plans made by another are made again


class Experiment(Tracked):
    """A model, a calibration text and what was measured with them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        data = read_file(folder / "experiment.json", "experiment.json")
        try:
            self.settings = ExperimentSettings(**data["settings"])
        except SettingsError as error:
            raise ExperimentError(
                f"{folder / 'experiment.json'} is damaged ({error}). Delete the folder {folder} and create it again."
            ) from None
        self.model_facts: dict[str, Any] = dict(data["model_facts"])
        self.layer_count: int = self.model_facts["layers"]
        self.created: float = data["created"]
        self.text_hash: str = data.get("text_hash", "")  # empty in experiments of the first release

    @classmethod
    def create(
        cls, name: str, settings: ExperimentSettings, model_facts: dict[str, Any], text_hash: str = ""
    ) -> Experiment:
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
        """Whether the experiment still exists."""
        return (self.folder / "experiment.json").is_file()

    def mend(self) -> None:
        """Put right what killed jobs left in it and in its runs; to be called by a job, which keeps others waiting."""
        for folder in (self.folder, self.folder / "runs", self.folder / "path", self.folder / "plans"):
            clean_up(folder)
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
        """What similarity/<metric>.json holds; None if it was not measured."""
        data = self.read(f"similarity/{metric}.json")
        if data and {len(row) for row in [data["matrix"], *data["matrix"]]} != {self.layer_count}:
            raise ExperimentError(f"Similarity {metric} of {self.name} is not of its model's layers. Measure it again.")
        return data

    def metrics_measured(self) -> list[str]:
        """The metrics that are there, the default one first."""
        return sorted(
            (file.stem for file in (self.folder / "similarity").glob("*.json")), key=lambda m: (m != "cka", m)
        )

    def save_similarity(self, metric: str, data: dict[str, Any]) -> None:
        """Write similarity/<metric>.json."""
        self.check_writable()
        write_json(self.folder / "similarity" / f"{metric}.json", data)

    def cost(self) -> dict[str, Any] | None:
        """What a generated token of the original costs; None if that was not measured."""
        return self.read("cost.json")

    def save_cost(self, cost: dict[str, Any]) -> None:
        """Write cost.json."""
        self.check_writable()
        write_json(self.folder / "cost.json", cost)

    def changed(self, name: str) -> int:
        """When one of its files was written last, in nanoseconds; 0 if there is none."""
        file = self.folder / name
        return file.stat().st_mtime_ns if file.is_file() else 0

    def rules_searched(self) -> list[str]:
        """Rules that have a threshold path."""
        return sorted(file.stem for file in (self.folder / "path").glob("*.json"))

    def planned(self, planner: str, layers: int) -> dict[str, Any] | None:
        """A planner's plan with so many layers, if it was found before."""
        data = self.read(f"plans/{planner}-{layers}.json")
        if not data or data.get("version") != PLANS_VERSION:
            return None
        return data if data.get("text_hash", "") in ("", self.text_hash) else None

    def save_planned(self, planner: str, layers: int, data: dict[str, Any]) -> None:
        """Write a planner's plan."""
        self.check_writable()
        write_json(self.folder / "plans" / f"{planner}-{layers}.json", data)

    def study(self, kind: str) -> dict[str, Any] | None:
        """What a study's last pass left: its grid, and the cells that cannot be."""
        return self.read(f"studies/{kind}.json")

    def save_study(self, kind: str, data: dict[str, Any]) -> None:
        """Write studies/<kind>.json."""
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
        return {"planner": name, "source": source_of(name), "settings": {} if name == BY_HAND else settings}

    def _planned_as(self, plan: MergePlan, method: str | None) -> dict[str, Any] | None:
        """The planner's plan that has these windows."""
        windows = plan.to_dict()["windows"]
        for planner in [method] if method else PLANNERS:
            data = self.planned(planner, plan.layers_left)
            if data and windows and [list(pair) for pair in data["windows"]] == windows:
                return data
        return {"planner": method} if method else None


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
    clean_up(gone.parent, older_than=60)


def _windows_of(plan: MergePlan) -> str:
    return f"windows {', '.join(map(str, plan.windows)) or 'none'}, rule {plan.rule}"
