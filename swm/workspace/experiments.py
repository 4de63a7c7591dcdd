"""Experiments: folders and JSON on disk. The pages read them, the stages write them."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swm.disk.files import clean_up, demo_experiment, matching, write_json, written_at
from swm.disk.names import (
    EXAMPLE,
    check_name,
    check_new,
    experiments_folder,
    folders_in,
    list_names,
    read_only_message,
    shipped_folders,
)
from swm.errors import ExperimentError, JobError, MissingError, SettingsError
from swm.plan import MergePlan, Needed
from swm.registry import MERGE_RULES, PLANNERS
from swm.settings import SKIPPED_TOKENS, ExperimentSettings
from swm.workspace.estimate import recent_rates, with_rate
from swm.workspace.origin import BY_HAND, BY_THRESHOLD, source_of
from swm.workspace.people import person, record
from swm.workspace.reading import read_file
from swm.workspace.runs import BASELINE, Run
from swm.workspace.shared_home import names_locked
from swm.workspace.tracked import Tracked

SEARCHED_BY = ("budget", "minutes", "keep_period", "keep")  # entries of a saved plan: how it was searched
KEPT = "-keeps-"  # in the name of a plan's file
PLANS_VERSION = 3  # raised when planners change: plans of other versions are computed again


class Experiment(Tracked):
    """A model, a calibration text, and everything measured with them."""

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
        self.needed_layers: Needed = self.model_facts.get("needed_layers") or ()
        self.created: float = data["created"]
        self._owner: str = data.get("owner", "")
        self.text_hash: str = data.get("text_hash", "")  # empty in experiments of the first release

    @classmethod
    def create(
        cls, name: str, settings: ExperimentSettings, model_facts: dict[str, Any], text_hash: str = ""
    ) -> Experiment:
        """A new folder for an experiment.

        Args:
            model_facts: as from `models.load.config_facts`.
            text_hash: of the calibration text, as from `texts.text_hash`; jobs refuse to continue with a changed text.
        """
        check_name(name)
        if demo_experiment():
            raise ExperimentError(read_only_message(name))
        data = {
            "settings": asdict(settings),
            "model_facts": model_facts,
            "created": time.time(),
            "text_hash": text_hash,
            **({"owner": owner} if (owner := person().name) else {}),
        }
        with names_locked():
            folder = check_new(name)
            write_json(folder / "experiment.json", data)
        record("create", name, "done")
        return cls(folder)

    @property
    def owner(self) -> str:
        """Who created it while logged in."""
        return self._owner

    def is_there(self) -> bool:
        """Whether the experiment still exists."""
        return (self.folder / "experiment.json").is_file()

    def mend(self) -> None:
        """Repair what killed jobs left in the experiment and its runs; only for a job that holds the locks."""
        for name in ("", "runs", "path", "plans", "answers"):
            clean_up(self.folder / name)
        for run in self.runs():
            if not run.state().active:
                run.mend()

    @classmethod
    def open(cls, name: str) -> Experiment:
        """An experiment by name; a bundled one also by its former name, without "example-"."""
        check_name(name)
        shipped = [folder for folder in shipped_folders() if folder.name in (name, f"{EXAMPLE}{name}")]
        for folder in (experiments_folder() / name, *shipped):
            if (folder / "experiment.json").is_file():
                return cls(folder)
        names = ", ".join(list_names()) or "none yet"
        raise MissingError(
            f"There is no experiment {name}. Existing ones: {names}. "
            f"Create it: python -m swm create {name} --model smollm2-135m"
        )

    def similarity(self, metric: str) -> dict[str, Any] | None:
        """What similarity/<metric>.json holds; None if it was not measured."""
        data = self.read(f"similarity/{metric}.json")
        if data and {len(row) for row in [data["matrix"], *data["matrix"]]} != {self.layer_count}:
            raise ExperimentError(
                f"Similarity {metric} of {self.name} does not match its {self.layer_count} layers. Measure it again."
            )
        return data

    def metrics_measured(self) -> list[str]:
        """The metrics measured so far, the default one first."""
        first = (f"cka_skip{SKIPPED_TOKENS}", "cka")
        names = [file.stem for file in matching(self.folder, "similarity/*.json")]
        return sorted(names, key=lambda name: (name not in first, first.index(name) if name in first else 0, name))

    def save_similarity(self, metric: str, data: dict[str, Any]) -> None:
        """Write similarity/<metric>.json."""
        self.check_writable()
        write_json(self.folder / "similarity" / f"{metric}.json", data)

    def cost(self) -> dict[str, Any] | None:
        """What generating one token costs with the original, at the rates of recent jobs; None if not measured."""
        cost = self.read("cost.json")
        return cost and {**cost, **recent_rates(cost)}

    def save_cost(self, cost: dict[str, Any]) -> None:
        """Write cost.json."""
        self.check_writable()
        write_json(self.folder / "cost.json", cost)

    def keep_rate(self, kind: str, device: str, dtype: str, tokens_per_second: float) -> None:
        """Add the rate of a job to cost.json, if there is one, for later estimates; see `estimate.recent_rates`."""
        if cost := self.read("cost.json"):
            self.save_cost(with_rate(cost, kind, device, dtype, tokens_per_second))

    def changed(self, name: str) -> int:
        """When one of its files was last written, in nanoseconds; 0 if there is none."""
        return written_at(self.folder / name)

    def rules_searched(self) -> list[str]:
        """Rules that have a threshold path; without those of plugins that are not installed."""
        return sorted(file.stem for file in matching(self.folder, "path/*.json") if file.stem in MERGE_RULES)

    def planned(self, planner: str, layers: int, keep: str = "") -> dict[str, Any] | None:
        """A planner's saved plan with `layers` layers; None if there is none, or it is outdated.

        Args:
            keep: the abilities that it was judged by, see `SearchOptions`.
        """
        return self._plan_in(_plan_file(planner, layers, keep))

    def _plan_in(self, file: str) -> dict[str, Any] | None:
        data = self.read(file)
        if not data or data.get("version") != PLANS_VERSION:
            return None
        return data if data.get("text_hash", "") in ("", self.text_hash) else None

    def plans_found(self) -> list[dict[str, Any]]:
        """Every planner's saved plans that are not outdated, by planner, the deepest first."""
        here = [(name, n) for name in PLANNERS for n in range(self.layer_count + 1)]
        return [data for name, n in here for data in self._all_planned(name, n)]

    def _all_planned(self, planner: str, layers: int) -> list[dict[str, Any]]:
        """The plan judged by perplexity, then those judged by abilities."""
        kept = sorted(f"plans/{file.name}" for file in matching(self.folder, f"plans/{planner}-{layers}{KEPT}*.json"))
        files = (_plan_file(planner, layers), *kept)
        return [data for file in files if (data := self._plan_in(file))]

    def save_planned(self, planner: str, layers: int, data: dict[str, Any]) -> None:
        """Write a planner's plan."""
        self.check_writable()
        write_json(self.folder / _plan_file(planner, layers, data.get("keep", "")), data)

    def study(self, kind: str) -> dict[str, Any] | None:
        """The last pass of a study: its grid, and the cells that failed."""
        return self.read(f"studies/{kind}.json")

    def save_study(self, kind: str, data: dict[str, Any]) -> None:
        """Write studies/<kind>.json."""
        self.check_writable()
        write_json(self.folder / "studies" / f"{kind}.json", data)

    def run(self, name: str) -> Run:
        """A run by name. `baseline`, the original model, always exists."""
        check_name(name)
        if name != BASELINE and not (self.folder / "runs" / name / "run.json").is_file():
            names = ", ".join(run.name for run in self.runs())
            raise ExperimentError(
                f"There is no run {name} in {self.name}. Existing ones: {names}. "
                f"Create it: python -m swm merge {self.name} {name} --threshold 0.9"
            )
        return Run(self, name)

    def runs(self) -> list[Run]:
        """The baseline, then the other runs by name; a damaged one is left out."""
        return self.readable_runs()[0]

    def readable_runs(self) -> tuple[list[Run], list[str]]:
        """The readable runs, the baseline first, and one message for each damaged one."""
        readable, broken = [Run(self, BASELINE)], []
        for name in folders_in(self.folder / "runs"):
            run = Run(self, name)
            if run.is_baseline or not (run.folder / "run.json").is_file():
                continue
            try:
                _ = run.plan
                readable.append(run)
            except MissingError:  # deleted since it was listed
                continue
            except ExperimentError as error:
                broken.append(str(error))
        return readable, broken

    def results_changed(self) -> list[tuple[str, int]]:
        """Every file of results, and when it was last written."""
        where = ("runs/*/*.json", "similarity/*.json", "abilities.json")
        found = (file for pattern in where for file in matching(self.folder, pattern))
        files = (f"{file.relative_to(self.folder)}" for file in found)
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
        """A new run with its plan, or the existing run with the same plan.

        Args:
            method: of a study's cell.
            origin: what chose the windows: `planner`, its settings, and `source`; looked up if not given.
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
                        f"Run {name} already exists with another plan ({run.plan}; requested: {plan}). Choose another "
                        "name."
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
        """The entries of run.json that describe a plan; raises PlanError if its model could not write."""
        self.check_keeps(plan)
        entries = {"plan": plan.to_dict(), "threshold": threshold, "similarity": similarity}
        return {**entries, "origin": origin or self.origin_of(plan, threshold, method)}

    def check_keeps(self, plan: MergePlan) -> None:
        """Raise PlanError if a plan leaves none of the layers that its model needs to write text."""
        plan.check_keeps(self.needed_layers, self.model_facts.get("architecture") or "the model")

    def origin_of(self, plan: MergePlan, threshold: float | None = None, method: str | None = None) -> dict[str, Any]:
        """What chose a plan's windows: the threshold search, a planner with this plan saved here, or the user."""
        settings = {"texts": self.settings.texts, "count": self.settings.count, "length": self.settings.length}
        settings["seed"] = self.settings.seed
        if threshold is not None or (method and method not in PLANNERS):
            name, settings = BY_THRESHOLD, {**settings, "threshold": threshold}
        else:
            planned = self._planned_as(plan, method)
            name = planned["planner"] if planned else BY_HAND
            settings |= {key: value for key, value in (planned or {}).items() if key in SEARCHED_BY}
        return {"planner": name, "source": source_of(name), "settings": {} if name == BY_HAND else settings}

    def _planned_as(self, plan: MergePlan, method: str | None) -> dict[str, Any] | None:
        """The saved plan of `method`, by default of any planner, that has the same windows."""
        windows = plan.to_dict()["windows"]
        for planner in [method] if method else PLANNERS:
            for data in self._all_planned(planner, plan.layers_left) if windows else ():
                if [list(pair) for pair in data["windows"]] == windows:
                    return data
        return {"planner": method} if method else None


def _plan_file(planner: str, layers: int, keep: str = "") -> str:
    """Where a planner's plan is saved; the abilities that it keeps are hashed, because they can be files' paths."""
    mark = f"{KEPT}{hashlib.sha256(keep.encode()).hexdigest()[:12]}" if keep else ""
    return f"plans/{planner}-{layers}{mark}.json"


def list_experiments() -> tuple[list[Experiment], list[str]]:
    """The readable experiments, and one message for each damaged one."""
    readable, broken = [], []
    for name in list_names():
        try:
            readable.append(Experiment.open(name))
        except MissingError:  # deleted since it was listed
            continue
        except ExperimentError as error:
            broken.append(str(error))
    return readable, broken
