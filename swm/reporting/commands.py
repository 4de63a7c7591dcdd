"""The commands that repeat an experiment or a run."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

from swm.reporting.arguments import plan_arguments, recovery_arguments
from swm.similarity.measure import Measure
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run


def commands(experiment: Experiment) -> list[str]:
    """The commands that repeat the experiment."""
    found = create_commands(experiment)
    for name in experiment.metrics_measured():
        found.append(_command("measure", experiment.name, *_measure_options(experiment.similarity(name) or {})))
    for run in experiment.runs():
        found += run_commands(run)
    return [*found, _command("compare", experiment.name)]


def _measure_options(data: dict[str, Any]) -> list[str]:
    changed = {name: data[name] for name, default in asdict(Measure()).items() if data.get(name, default) != default}
    return [word for name, value in changed.items() for word in (f"--{name.removesuffix('_tokens')}", str(value))]


def create_commands(experiment: Experiment) -> list[str]:
    """The command that makes the same experiment."""
    settings = [word for name, value in asdict(experiment.settings).items() for word in (f"--{name}", str(value))]
    return [_command("create", experiment.name, *settings)]


def run_commands(run: Run) -> list[str]:
    """The commands that repeat a run."""
    name, settings, found = (run.experiment.name, run.name), run.settings, []
    if not run.is_baseline:
        found.append(_command("merge", *name, *plan_arguments(run.plan)))
    if "recovery" in settings:
        found.append(_command("recover", *name, *recovery_arguments(settings["recovery"])))
    if scores := run.scores():
        limit = scores["limit"] if scores["limit"] is not None else "none"
        texts = ",".join(scores["perplexity"])
        found.append(
            _command("evaluate", *name, "--tasks", ",".join(scores["tasks"]), "--limit", str(limit), "--texts", texts)
        )
    if run.timing() and not run.is_baseline:
        found.append(_command("time", *name))
    return found


def _command(*arguments: str) -> str:
    return shlex.join(["python", "-m", "swm", *arguments])
