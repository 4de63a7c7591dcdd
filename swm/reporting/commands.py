"""The commands that reproduce an experiment or a run, and their options for a plan or a recovery."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from swm.disk.names import EXAMPLE, is_shipped
from swm.plan import MergePlan, WidthCut
from swm.registry import PLANNERS
from swm.settings import preset_settings
from swm.similarity.measure import Measure
from swm.workspace.controls import control_of
from swm.workspace.experiments import Experiment
from swm.workspace.origin import BY_THRESHOLD
from swm.workspace.runs import Run

READING = ("list", "plan", "compare", "report", "answer")  # commands that take a bundled example as it is


def own_name(experiment: Experiment) -> str:
    """The name that commands give the experiment: of a bundled example, which cannot be changed, that of a new one."""
    return f"my-{experiment.name.removeprefix(EXAMPLE)}" if is_shipped(experiment.folder) else experiment.name


def commands(experiment: Experiment) -> list[str]:
    """The commands that reproduce the experiment and its runs."""
    lines = create_commands(experiment)
    for name in experiment.metrics_measured():
        lines.append(_command("measure", own_name(experiment), *_measure_options(experiment.similarity(name) or {})))
    lines += _abilities_commands(experiment.read("abilities.json"), own_name(experiment))
    runs = experiment.runs()
    served = {control.name: run.name for run in reversed(runs) if (control := _own_control(run))}  # the first such run
    for run in runs:
        if run.name not in served:
            lines += run_commands(run)
    lines += [_command("control", own_name(experiment), name) for name in sorted(served.values())]
    # Several runs can be of one search; abilities are measured by the same command before healing and after it.
    once = [line for n, line in enumerate(lines) if " plan " not in line or line not in lines[:n]]
    return [*once, _command("compare", own_name(experiment))]


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
    return [_command("create", own_name(experiment), *settings)]


def run_commands(run: Run) -> list[str]:
    """The commands that reproduce a run of an existing experiment."""
    name, settings, lines = (own_name(run.experiment), run.name), run.settings, []
    if not run.is_baseline:
        lines += _search(run)
        lines.append(_command("merge", *name, *plan_arguments(run.plan)))
        lines += _abilities_commands(run.read("abilities-merged.json"), *name)
    if "recovery" in settings:
        lines.append(_command("recover", *name, *recovery_arguments(settings["recovery"])))
    if options := _evaluation(run):
        lines.append(_command("evaluate", *name, *options))
    lines += _abilities_commands(run.read("abilities.json"), *name)
    if run.timing() and not run.is_baseline:
        lines.append(_command("time", *name))
    if (there := run.in_llama_cpp()) and not run.is_baseline:
        lines.append(_command("time", *name, "--client", "llama.cpp", "--type", there["type"]))
    return lines


def _abilities_commands(measured: dict[str, Any] | None, *of: str) -> list[str]:
    """The command that asks as many requests of the same abilities; none where nothing was measured."""
    if not measured or not measured["abilities"]:
        return []
    entries = measured["abilities"]
    most = max(len(entry["ids"]) for entry in entries.values())
    parts = ["--parts"] if any("0 mlp" in entry["scores"] for entry in entries.values()) else []
    return [_command("abilities", *of, "--abilities", ",".join(entries), "--requests", str(most), *parts)]


def page_commands(experiment: Experiment, arguments: Sequence[Sequence[str]]) -> list[str]:
    """Commands that do what a page does; where they would change a bundled example, with one of one's own."""
    if not is_shipped(experiment.folder) or all(each[0] in READING for each in arguments):
        return [_command(*each) for each in arguments]
    own = [[own_name(experiment) if word == experiment.name else word for word in each] for each in arguments]
    return [*create_commands(experiment), *(_command(*each) for each in own)]


def _search(run: Run) -> list[str]:
    """The command that chose the run's windows; none if somebody set them, or a plugin did that is not installed."""
    origin, name, plan = run.origin, own_name(run.experiment), run.plan
    if not plan.windows:
        return []
    planner, how = origin["planner"], origin["settings"]
    target = ["--layers", str(plan.layers_left)]
    if planner == BY_THRESHOLD:
        target = ["--threshold", str(how["threshold"])] if how.get("threshold") is not None else target
        return [_command("plan", name, *target, "--rule", plan.rule)]
    if planner not in PLANNERS:
        return []
    searched = [word for key in ("budget", "minutes") if key in how for word in (f"--{key}", f"{how[key]:g}")]
    searched += ["--keep-period"] if how.get("keep_period") else []
    searched += ["--keep", how["keep"]] if how.get("keep") else []
    return [_command("plan", name, "--planner", planner, *target, *searched)]


def card_commands(run: Run) -> list[str]:
    """The commands that reproduce a run and what it is compared with, from nothing."""
    control = [_command("control", own_name(run.experiment), run.name)] if _own_control(run) else []
    return [*create_commands(run.experiment), *run_commands(run), *control]


def _evaluation(run: Run) -> list[str]:
    """Options of the evaluation that gave the run's scores; none without scores."""
    if not (scores := run.scores()):
        return []
    limit = "none" if scores["limit"] is None else f"{scores['limit']}"
    return ["--tasks", ",".join(scores["tasks"]) or "none", "--limit", limit, "--texts", ",".join(scores["perplexity"])]


def _command(*arguments: str) -> str:
    return shlex.join(["python", "-m", "swm", *arguments])


def plan_arguments(plan: MergePlan) -> list[str]:
    """Options for this plan: windows, rule, width."""
    windows = windows_arguments(",".join(map(str, plan.windows)))
    return [*windows, "--rule", plan.rule, *width_arguments(plan.width)]


def windows_arguments(windows: str) -> list[str]:
    """Options for windows set by hand."""
    return [f"--windows={windows}"] if windows.startswith("-") else ["--windows", windows]


def width_arguments(width: WidthCut) -> list[str]:
    """Options for width pruning; none without it."""
    return ["--width", f"{width.ratio:g}", "--width-by", width.method] if width.ratio else []


def recovery_arguments(settings: dict[str, Any]) -> list[str]:
    """Options for these settings: the preset, and every value that differs from it."""
    preset = asdict(preset_settings(settings["preset"], steps=settings["steps"]))
    changed = {name: settings[name] for name in preset if name in settings and settings[name] != preset[name]}
    options = [word for name, value in changed.items() for word in ("--set", f"{name}={value}")]
    return ["--preset", settings["preset"], "--steps", f"{settings['steps']}", *options]
