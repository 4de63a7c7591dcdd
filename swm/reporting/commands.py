"""The commands that reproduce an experiment or a run."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Any

from swm.reporting.arguments import plan_arguments, recovery_arguments
from swm.similarity.measure import Measure
from swm.workspace.controls import control_of
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run


def commands(experiment: Experiment) -> list[str]:
    """The commands that reproduce the experiment and its runs."""
    lines = create_commands(experiment)
    for name in experiment.metrics_measured():
        lines.append(_command("measure", experiment.name, *_measure_options(experiment.similarity(name) or {})))
    runs = experiment.runs()
    served = {control.name: run.name for run in reversed(runs) if (control := _own_control(run))}  # the first such run
    for run in runs:
        if run.name not in served:
            lines += run_commands(run)
    lines += [_command("control", experiment.name, name) for name in sorted(served.values())]
    return [*lines, _command("compare", experiment.name)]


def _own_control(run: Run) -> Run | None:
    """The run's control, if `swm control` would make the same: not a study's, and scored like the run or not at all."""
    control = control_of(run)
    if control is None or "method" in control.settings:
        return None
    return control if _evaluation(control) in ([], _evaluation(run)) else None


def _measure_options(data: dict[str, Any]) -> list[str]:
    defaults = asdict(Measure())
    changed = {name: data[name] for name, default in defaults.items() if data.get(name, default) != default}
    changed["skip_tokens"] = data.get("skip_tokens", 0)  # without it, two maps are measured
    return [word for name, value in changed.items() for word in (f"--{name.removesuffix('_tokens')}", str(value))]


def create_commands(experiment: Experiment) -> list[str]:
    """The command that creates the same experiment."""
    settings = [word for name, value in asdict(experiment.settings).items() for word in (f"--{name}", str(value))]
    return [_command("create", experiment.name, *settings)]


def run_commands(run: Run) -> list[str]:
    """The commands that reproduce a run of an existing experiment."""
    name, settings, lines = (run.experiment.name, run.name), run.settings, []
    if not run.is_baseline:
        lines.append(_command("merge", *name, *plan_arguments(run.plan)))
    if "recovery" in settings:
        lines.append(_command("recover", *name, *recovery_arguments(settings["recovery"])))
    if options := _evaluation(run):
        lines.append(_command("evaluate", *name, *options))
    if run.timing() and not run.is_baseline:
        lines.append(_command("time", *name))
    if (there := run.in_llama_cpp()) and not run.is_baseline:
        lines.append(_command("time", *name, "--client", "llama.cpp", "--type", there["type"]))
    return lines


def card_commands(run: Run) -> list[str]:
    """The commands that reproduce a run and what it is compared with, from nothing."""
    control = [_command("control", run.experiment.name, run.name)] if _own_control(run) else []
    return [*create_commands(run.experiment), *run_commands(run), *control]


def _evaluation(run: Run) -> list[str]:
    """Options of the evaluation that gave the run's scores; none without scores."""
    if not (scores := run.scores()):
        return []
    limit = "none" if scores["limit"] is None else f"{scores['limit']}"
    return ["--tasks", ",".join(scores["tasks"]), "--limit", limit, "--texts", ",".join(scores["perplexity"])]


def _command(*arguments: str) -> str:
    return shlex.join(["python", "-m", "swm", *arguments])
