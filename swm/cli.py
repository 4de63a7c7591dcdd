"""The command line: one command for each stage. Results on stdout, progress and messages on stderr."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from swm.errors import Cancelled, ExperimentError, SettingsError, SwmError, printable
from swm.experiments import BASELINE, Experiment, Run, Settings, delete, list_experiments
from swm.files import child_environment, demo_experiment
from swm.grids import KINDS, OF_RUNS, Grid
from swm.jobs import Target, beside, cancel, tracked
from swm.metrics import Measure, parse_tasks
from swm.names import check_name
from swm.options import build_parser, check_options
from swm.parallel import is_first, together, world_size
from swm.path import PlanAt
from swm.plan import DEFAULT_RULE, WHOLE, MergePlan, WidthCut, Window, parse_windows
from swm.presets import RecoverySettings, preset_settings
from swm.reruns import plan_changes, recovery_changes, refuse
from swm.tracked import job_lock, read_only_message

Progress = Callable[[int, int, str], None]
SHARED = ("measure", "recover", "evaluate")  # commands that several processes work on together


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m swm`; exits with 0, 1 (the user can mend it) or 2 (wrong usage)."""
    warnings.simplefilter("ignore")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("swm").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character shows its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = build_parser().parse_args(arguments)
    if world_size() > 1 and options.command not in SHARED:
        sys.exit(_failed(f"{options.command} runs in one process: start it without accelerate launch or torchrun."))
    try:
        check_options(options)
        result, text = COMMANDS[options.command](options)
    except SwmError as error:
        sys.exit(_failed(str(error)))
    except Cancelled:
        sys.exit(_failed("Cancelled. What was finished is kept; the same command goes on from there."))
    except BrokenPipeError:
        sys.exit(1)
    if is_first():
        print(json.dumps(result, allow_nan=False) if options.json else printable(text))


def _failed(message: str) -> int:
    print(printable(message), file=sys.stderr)
    return 1


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def watched(target: Target, stage: str) -> Iterator[Progress]:
    """The stage's progress on disk and, on a terminal, as a bar."""
    if not is_first():  # the first of several processes keeps the state, and waits for its turn
        together()
        if stage == "recover":  # cancelled, it writes a checkpoint with all of them
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        with beside(target):
            yield lambda done, total, text: None
        return
    shape = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}"
    bar = tqdm(desc=stage, disable=not sys.stderr.isatty(), file=sys.stderr, bar_format=shape)
    with tracked(target, stage, sys.argv[1:]) as tracker, bar:
        together()

        def progress(done: int, total: int, text: str) -> None:
            tracker(done, total, text)
            bar.total, bar.n = total or None, done
            bar.set_postfix_str(printable(text))

        yield progress


# ---- commands: each gives (JSON object, text) ---------------------------------------------------------------------

Result = tuple[Any, str]
Entries = dict[str, Any]


def run_models(options: argparse.Namespace) -> Result:
    from swm.models import TESTED_FAMILIES
    from swm.sources import BUNDLED

    rows = {name: {"title": model.title, "licence": model.licence} for name, model in BUNDLED.items()}
    lines = [f"{name}  {model.title} ({model.licence})" for name, model in BUNDLED.items()]
    how = (
        "Besides: a Hugging Face folder (config.json and .safetensors), a .gguf file, or a hub id such as "
        "meta-llama/Llama-2-7b-hf, which needs a network the first time."
    )
    families = [f"  {name:12} {title}" for name, title in TESTED_FAMILIES.items()]
    table = ["Families that are tested (model_type in config.json); others are tried by structure:", *families]
    return {"bundled": rows, "families": TESTED_FAMILIES}, "\n".join([*lines, how, *table])


def run_list(options: argparse.Namespace) -> Result:
    experiments, broken = list_experiments()
    rows: list[dict[str, Any]] = [
        {"experiment": e.name, "model": e.settings.model, "shipped": e.read_only, "runs": [r.name for r in e.runs()]}
        for e in experiments
    ]
    lines = [f"{row['experiment']}  {row['model']}  runs: {', '.join(row['runs'])}" for row in rows]
    return {"experiments": rows, "broken": broken}, "\n".join([*lines, *broken])


def run_create(options: argparse.Namespace) -> Result:
    from swm import stages

    settings = Settings(options.model, options.texts, options.count, options.length, options.seed, options.dtype)
    experiment = stages.create(options.exp, settings)
    facts = experiment.model_facts
    text = (
        f"Created {experiment.name}: {facts['architecture']}, {facts['layers']} layers, "
        f"{facts['parameters'] / 1e6:,.1f} M parameters.\nNext: python -m swm measure {experiment.name}"
    )
    return {"experiment": experiment.name, "folder": str(experiment.folder), "model": facts}, text


def run_measure(options: argparse.Namespace) -> Result:
    from swm import stages

    how = Measure(options.metric, options.part, options.samples, options.skip, options.texts)
    experiment = _own(options.exp)
    with watched(experiment, "measure") as progress:
        data = stages.measure(experiment, how, progress)
    matrix = data["matrix"]
    lines = [f"{data['metric']} of each layer and the next, {data['tokens']} tokens"]
    lines += [f"{i:3d} - {i + 1:<3d} {matrix[i][i + 1]:.4f}" for i in range(len(matrix) - 1)]
    return data, "\n".join([*lines, *filter(None, [data["warning"]])])


def run_search(options: argparse.Namespace) -> Result:
    from swm import planning

    experiment = _own(options.exp)
    with watched(experiment, "search") as progress:
        path = planning.search(experiment, options.rule, options.low, options.focus, progress, options.precision)
    steps = path.intervals()
    lines = ["threshold above   up to     layers  similarity  windows"]
    lines += [
        f"{s.low:15.4f} {s.high:7.4f} {s.plan.layers_left:10d} {s.similarity:11.4f}  {_windows(s.plan)}" for s in steps
    ]
    lines.append(f"{len(path.similarities)} windows tried in {path.layer_runs:,.0f} runs of a layer")
    if path.layer_count <= 2:
        lines.append("The last layer is never merged, so two layers have no window to try. By hand: --windows 0-1.")
    if path.scoring != "exact":
        lines.append(f"similarities in {path.scoring}: off by up to {path.difference:.1g} where they were checked")
    data = {
        "rule": path.rule,
        "windows_tried": len(path.similarities),
        "layer_runs": round(path.layer_runs, 1),
        "scoring": path.scoring,
        "difference": path.difference,
        "plans": [step.to_dict() for step in steps],
    }
    return data, "\n".join(lines)


def run_plan(options: argparse.Namespace) -> Result:
    experiment = Experiment.open(options.exp)
    if options.windows is not None or options.planner:
        data = _measured_plan(experiment, options)
        plan = MergePlan.from_dict(data)
        return data, (
            f"{plan.layers_left} of {plan.layer_count} layers; windows {_windows(plan)}; rule {plan.rule}; similarity "
            f"{data['similarity']:.4f}; perplexity {data['perplexity']:,.1f} on the calibration text, the original's "
            f"{data['perplexity_original']:,.1f}"
        )
    step = _plan(experiment, options)
    text = (
        f"{step.plan.layers_left} of {step.plan.layer_count} layers; windows {_windows(step.plan)}; similarity "
        f"{step.similarity:.4f}; the same for thresholds above {step.low:.4f} up to {step.high:.4f}"
    )
    if step.perplexity is not None:
        text += f"; perplexity {step.perplexity:,.1f} on the calibration text"
    return step.to_dict(), text


def _measured_plan(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """A plan by hand, or of a planner, with its similarity and perplexity."""
    from swm import planning

    if not options.planner:
        plan = MergePlan(experiment.layer_count, parse_windows(options.windows), options.rule or DEFAULT_RULE)
        measured = partial(planning.measure_plan, experiment, plan)
    else:
        measured = partial(
            planning.plan_by,
            experiment,
            options.planner,
            cast(int, _layers(experiment, options)),
            planning.BEST_BUDGET if options.budget is None else options.budget,
            rule=options.rule,
            precision=options.precision,
        )
    if experiment.read_only:
        return measured()
    with watched(experiment, "plan") as progress:
        return measured(progress=progress)


def _layers(experiment: Experiment, options: argparse.Namespace) -> int | None:
    """How many layers are to be left, where the options say it."""
    if options.planner and options.layers is None and options.ratio is None:
        raise SettingsError("A planner needs to know how many layers to leave. Say --layers or --ratio.")
    if options.ratio is None:
        return cast("int | None", options.layers)
    if not 0 <= options.ratio < 1:
        raise SettingsError(f"--ratio {options.ratio} is out of range. Choose 0 or more, and less than 1.")
    return round(experiment.layer_count * (1 - options.ratio))


def run_merge(options: argparse.Namespace) -> Result:
    from swm import stages

    run, entries = _planned_run(options)
    done = not options.again and run.has_model and run.stage in ("merged", "recovered")
    if not done and run.stage == "recovered" and not options.again:
        raise ExperimentError(f"Run {run.name} is healed and has no model any more. Pass --again to merge it anew.")
    if not done:
        with watched(run, "merge") as progress:
            stages.merge(run, progress, True if options.stream else None, entries)
    plan = run.plan
    data = {"run": run.name, **plan.to_dict(), **run.settings["merge"], "folder": str(run.model_folder)}
    text = ""
    if done:
        since = " and healed since" if run.stage == "recovered" else ""
        text = f"Run {run.name} is merged with these settings already{since}: nothing to do. --again merges it again"
        text += f"{', and deletes its adapter, scores and timing' * bool(since)}.\n"
    text += (
        f"Merged {_windows(plan)}: {plan.layers_left} of {plan.layer_count} layers, "
        f"{data['parameters'] / 1e6:,.1f} M parameters, in {run.model_folder}"
    )
    return data, text


def _plan(experiment: Experiment, options: argparse.Namespace) -> PlanAt:
    """The plan that the options name; a search that it needs is a job of the experiment."""
    from swm import planning

    rule = options.rule or DEFAULT_RULE
    asked = {"threshold": options.threshold, "layers": _layers(experiment, options), "rule": rule}
    asked["precision"] = options.precision
    known = planning.known_plan(experiment, **asked)
    if known or experiment.read_only:
        return known or planning.plan_for(experiment, **asked)
    with watched(experiment, "search") as progress:
        return planning.plan_for(experiment, **asked, progress=progress)


def _planned_run(options: argparse.Namespace) -> tuple[Run, Entries]:
    """The run with the plan that the options name, made if it is new; without a plan the run that is there.

    Returns:
        With what run.json will say of the plan once its model has taken the place of a former plan's; empty if the run
        has the plan already.
    """
    experiment = _own(options.exp)
    check_name(options.run)
    width = WidthCut(options.width, options.width_by or WHOLE.method) if options.width else WHOLE
    threshold: float | None = None
    similarity: float | None = None
    if options.planner:
        data = _measured_plan(experiment, options)
        plan, similarity = MergePlan.from_dict(data), data["similarity"]
    elif options.windows is not None:
        plan = MergePlan(experiment.layer_count, parse_windows(options.windows), options.rule or DEFAULT_RULE)
    elif options.threshold is None and options.layers is None and options.ratio is None:
        if options.width:
            raise SettingsError('--width is a part of a plan. Say --windows "" for width alone, or name a plan.')
        return _settled(experiment.run(options.run)), {}
    else:
        step = _plan(experiment, options)
        plan, threshold, similarity = step.plan, step.threshold, step.similarity
    plan, origin = replace(plan, width=width), None
    if options.planner:
        origin = experiment.origin_of(MergePlan.from_dict(data), method=options.planner)
    run = _settled(Run(experiment, options.run))
    if run.is_there() and not run.is_baseline and run.stage != "planned":
        changes = plan_changes(run.plan, plan)
        if changes and options.again:
            return run, experiment.plan_entries(plan, threshold, similarity, origin=origin)
        refuse(run, changes)
    return experiment.create_run(options.run, plan, threshold, similarity, origin=origin), {}


def run_all(options: argparse.Namespace) -> Result:
    from swm.pipeline import is_finished, run_pipeline

    settings = recovery_settings(options)
    run, entries = _planned_run(options)
    recovery = None if options.no_recovery else settings
    if done := not options.again and is_finished(run, options.limit, recovery):
        told = f"Run {run.name} is finished with these settings: nothing to do. --again repeats everything."
    else:
        with watched(run, "run") as progress:
            run_pipeline(run, options.limit, recovery, progress, options.again, entries)
    from swm.compare import compare

    rows = [row for row in compare(run.experiment) if row["run"] in (BASELINE, run.name)]
    return {"runs": rows}, (f"{told}\n\n" if done else "") + _table(run.experiment, run)


def run_study(options: argparse.Namespace) -> Result:
    from swm.compare import csv_text
    from swm.study import run_study
    from swm.study_rows import study_rows

    experiment = _own(options.exp)
    grid = experiment.grid(options.kind, options.grid)
    if options.kind in OF_RUNS and options.against:
        methods = {cell.name: None for cell in Grid.from_dict(grid).cells(experiment.layer_count)}
        if options.against not in methods:
            raise SettingsError(f"The grid has no method '{options.against}'. Choose one of: {', '.join(methods)}.")
    with watched(experiment, "study") as progress:
        failed = run_study(experiment, options.kind, grid, progress)
    told = "".join(f"\n{cell}: {reason}" for cell, reason in failed.items())
    if options.kind not in OF_RUNS:
        return {"study": options.kind, "failed": failed}, f"Done: {KINDS[options.kind]}{told}"
    rows = study_rows(experiment, options.against)
    return {"study": options.kind, "failed": failed, "rows": rows}, csv_text(rows) + told


def recovery_settings(options: argparse.Namespace) -> RecoverySettings:
    """The preset with what the options change; a file by its full path, as it may be read again elsewhere."""
    names = [field.name for field in fields(RecoverySettings) if field.name != "preset"]
    changed = {name: getattr(options, name) for name in names}
    if (changed["texts"] or "").endswith((".txt", ".jsonl")):
        changed["texts"] = os.path.abspath(os.path.expanduser(changed["texts"]))
    return preset_settings(options.preset, **changed)


def run_recover(options: argparse.Namespace) -> Result:
    from swm import stages

    settings = recovery_settings(options)
    run = _settled(_own(options.exp).run(options.run))
    if not options.again:
        refuse(run, recovery_changes(run, settings))
        if run.stage == "recovered" and run.has_model:
            stages.check_recovery_text(run, settings)
            told = f"Run {run.name} is healed with these settings already: nothing to do. --again heals it again."
            return {"run": run.name, **run.settings["recovery"]}, told
    with watched(run, "recover") as progress:
        summary = stages.recover_run(run, settings, progress)
    losses = summary["held_out_losses"]
    told = f"held-out loss {min(losses):.3f}, {losses[0]:.3f} at the first checkpoint; " if losses else ""
    return {"run": run.name, **summary}, f"Recovered {run.name}: {told}model in {run.model_folder}"


def run_evaluate(options: argparse.Namespace) -> Result:
    from swm import stages

    tasks = parse_tasks(options.tasks)
    texts = [text.strip() for text in options.texts.split(",") if text.strip()]
    run = _own(options.exp).run(options.run)
    with watched(run, "evaluate") as progress:
        data = stages.evaluate(run, tasks, options.limit, progress, texts)
    return data, _table(run.experiment, run)


def run_time(options: argparse.Namespace) -> Result:
    from swm import stages

    run = _own(options.exp).run(options.run)
    with watched(run, "time") as progress:
        data = stages.time_run(run, options.tokens, progress)
    text = f"{data['tokens_per_second']:.1f} tokens per second, "
    text += f"{data['latency_ms']:.0f} ms for {data['new_tokens']} tokens"
    if "speedup" in data:
        text += f"; {data['speedup']['value']:.2f} times the original"
    return data, text


def run_sweep(options: argparse.Namespace) -> Result:
    from swm.sweep import Sweep, load_grid
    from swm.workers import run_sweep

    sweep = Sweep.create(load_grid(Path(options.file)))
    if options.status:
        states = sweep.states()
    else:
        with tracked(sweep, "sweep", sys.argv[1:], device=False) as progress:
            states = run_sweep(sweep, progress, options.executor, options.workers, options.address)
    failed = sweep.failures()
    lines = [f"{state:12} {name}  {failed.get(name, '')}".rstrip() for name, state in states.items()]
    return {"sweep": sweep.name, "cells": states}, "\n".join(lines)


def run_estimate(options: argparse.Namespace) -> Result:
    from swm.estimate import duration, gib, stage_needs
    from swm.machine import free_memory_bytes
    from swm.models import config_facts
    from swm.timing import config_cost

    facts = config_facts(options.m, options.dtype)
    if not 0 <= options.ratio < 1:
        raise SettingsError(f"--ratio {options.ratio} is out of range. Choose 0 or more, and less than 1.")
    dropped = facts["layers"] - max(1, round(facts["layers"] * (1 - options.ratio)))
    plan = MergePlan(facts["layers"], (Window(0, dropped),) if dropped else ())
    cost = None if options.untimed else config_cost(options.m, options.dtype)
    tokens = options.count * options.length_of_texts
    needs = stage_needs(facts, cost, plan, recovery_settings(options), options.limit, tokens)
    lines = [
        f"{facts['architecture']}: {facts['layers']} layers, {facts['parameters'] / 1e9:,.3f} billion parameters, "
        f"{gib(facts['size_bytes'])} in {facts['dtype']}; {gib(free_memory_bytes())} of memory are free here.",
        f"{'stage':22} {'memory':>10} {'disk':>10} {'time here':>14}",
    ]
    for need in needs:
        time = "–" if need.seconds is None else duration(need.seconds)
        lines.append(f"{need.stage:22} {gib(need.memory_bytes):>10} {gib(need.disk_bytes):>10} {time:>14}")
    lines.append("Beside the memory: 0.7 GiB for the program. Times hold where the memory is there.")
    return {"model": facts, "cost": cost, "stages": [asdict(need) for need in needs]}, "\n".join(lines)


def run_compare(options: argparse.Namespace) -> Result:
    from swm.compare import compare, csv_text, table

    rows = compare(Experiment.open(options.exp))
    return {"runs": rows}, csv_text(rows) if options.csv else table(rows)


def run_report(options: argparse.Namespace) -> Result:
    from swm.report import write_report

    if demo_experiment():
        raise ExperimentError(read_only_message(options.exp))
    write_report(Experiment.open(options.exp), options.output)
    return {"file": str(options.output)}, f"Report in {options.output}"


def run_export(options: argparse.Namespace) -> Result:
    from swm.report import export_run

    folder = export_run(_own(options.exp).run(options.run), Path(options.folder))
    return {"folder": str(folder)}, f"Model and model card in {folder}"


def run_repeat(options: argparse.Namespace) -> Result:
    from swm.pipeline import repeat
    from swm.recipe import read_recipe

    run = repeat(read_recipe(Path(options.file)), options.name, watched)
    from swm.compare import compare

    return {"runs": compare(run.experiment)}, _table(run.experiment, run)


def run_answer(options: argparse.Namespace) -> Result:
    from swm import stages
    from swm.answers import Answer

    run = Experiment.open(options.exp).run(options.run)
    answer = Answer(*stages.load_run(run))
    pieces = []
    for piece in answer.pieces(options.prompt, options.tokens):
        pieces.append(piece)
        if not options.json:
            print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    if not options.json:
        print(answer.speed, file=sys.stderr)
    return {"run": run.name, "prompt": options.prompt, "answer": "".join(pieces), "speed": answer.speed}, ""


def run_app(options: argparse.Namespace) -> Result:
    """Becomes the app: streamlit in this process's place."""
    app = Path(__file__).parents[1] / "app.py"
    if not app.is_file():
        raise ExperimentError(f"There is no {app}: the app is part of the source folder. Start it there: make app")
    if not 1 <= options.port <= 65_535:
        raise SettingsError(f"--port {options.port} is out of range. Choose 1 to 65,535.")
    environment = child_environment()
    os.chdir(app.parent)  # where its settings lie
    command = [sys.executable, "-m", "streamlit", "run", str(app), "--server.port", str(options.port)]
    os.execve(sys.executable, command, environment)  # noqa: S606 - an argument list, no shell


def run_cancel(options: argparse.Namespace) -> Result:
    target = _target(options)
    cancel(target)
    return {"cancelled": target.name}, f"Asked the job of {target.name} to stop."


def run_delete(options: argparse.Namespace) -> Result:
    target = _target(options)
    delete(target)
    return {"deleted": target.name}, f"Deleted {target.name}."


def run_demo(options: argparse.Namespace) -> Result:
    from swm.pipeline import run_demo as demo

    experiment = demo(options.name, options.limit, options.steps, watched)
    from swm.compare import compare, table

    rows = compare(experiment)
    return {"runs": rows}, table(rows)


def _target(options: argparse.Namespace) -> Experiment | Run:
    experiment = _own(options.exp)
    return experiment.run(options.run) if options.run else experiment


def _own(name: str) -> Experiment:
    """An experiment that may be written to."""
    experiment = Experiment.open(name)
    if experiment.read_only:
        raise ExperimentError(read_only_message(name))
    return experiment


def _settled(run: Run) -> Run:
    """The run, once what a killed job left open is settled: only then does run.json say what is there."""
    if world_size() == 1 and not run.is_baseline and run.is_there():
        with job_lock(run):
            run.mend()
    return run


def _table(experiment: Experiment, run: Run) -> str:
    from swm.compare import compare, table

    return table([row for row in compare(experiment) if row["run"] in (BASELINE, run.name)])


def _windows(plan: MergePlan) -> str:
    return ",".join(map(str, plan.windows)) or "none"


COMMANDS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "models": run_models,
    "list": run_list,
    "create": run_create,
    "measure": run_measure,
    "search": run_search,
    "plan": run_plan,
    "merge": run_merge,
    "recover": run_recover,
    "evaluate": run_evaluate,
    "time": run_time,
    "run": run_all,
    "study": run_study,
    "sweep": run_sweep,
    "estimate": run_estimate,
    "compare": run_compare,
    "report": run_report,
    "export": run_export,
    "repeat": run_repeat,
    "answer": run_answer,
    "cancel": run_cancel,
    "delete": run_delete,
    "app": run_app,
    "demo": run_demo,
}
