"""Commands that produce models and scores: merge, recover, evaluate, time, run, control, study, sweep, repeat, demo."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from swm.cli.check import TARGETS
from swm.cli.plans import (
    Entries,
    Result,
    chosen_plan,
    compared,
    measured_plan,
    own_experiment,
    recovery_settings,
    windows_text,
)
from swm.cli.watched import watched
from swm.disk.names import check_name
from swm.errors import ExperimentError, SettingsError
from swm.evaluation.task_names import parse_tasks
from swm.jobs.tracking import tracked
from swm.models.processes import world_size
from swm.plan import DEFAULT_RULE, WHOLE_WIDTH, MergePlan, WidthCut, parse_windows
from swm.reporting.verdict import speed_words
from swm.studies.grid_files import grid_of
from swm.studies.grids import KINDS, OF_RUNS, Grid, cells_of
from swm.workspace.changes import plan_changes, recovery_changes, refuse
from swm.workspace.runs import Run
from swm.workspace.tracked import job_lock


def run_merge(options: argparse.Namespace) -> Result:
    """Result of `swm merge`: the merged run."""
    from swm.stages.merge import merge_run

    run, plan, entries = _planned_run(options)
    done = not options.again and run.has_model and run.stage in ("merged", "recovered")
    if not done and run.stage == "recovered" and not options.again:
        raise ExperimentError(f"Run {run.name} was healed, but its model is missing. Pass --again to merge it again.")
    if not done:
        with watched(run, "merge") as progress:
            run.check_plan(run.plan if entries else plan)
            merge_run(run, progress, True if options.stream else None, entries)
    data = {"run": run.name, **plan.to_dict(), **run.settings["merge"], "folder": str(run.model_folder)}
    text = ""
    if done:
        healed = run.stage == "recovered"
        text = f"Run {run.name} is already merged with these settings{' and healed' if healed else ''}: nothing to do. "
        text += f"Pass --again to merge it again{', which deletes its adapter, scores and timing' if healed else ''}.\n"
    text += (
        f"Merged {windows_text(plan)}: {plan.layers_left} of {plan.layer_count} layers, "
        f"{data['parameters'] / 1e6:,.1f} M parameters, in {run.model_folder}"
    )
    return data, text


def _planned_run(options: argparse.Namespace) -> tuple[Run, MergePlan, Entries]:
    """The run with the plan that the options specify, created if needed; without a plan, the existing run.

    Returns:
        The run; its plan, which no other process may have changed once the job begins; and the entries that run.json
        gets once the model of a new plan has replaced the old one, empty unless the plan changes.
    """
    experiment = own_experiment(options.exp)
    check_name(options.run)
    width = WidthCut(options.width, options.width_by or WHOLE_WIDTH.method) if options.width else WHOLE_WIDTH
    threshold: float | None = None
    similarity: float | None = None
    if options.planner:
        data = measured_plan(experiment, options, brief=True)
        plan, similarity = MergePlan.from_dict(data), data["similarity"]
    elif options.windows is not None:
        plan = MergePlan(experiment.layer_count, parse_windows(options.windows), options.rule or DEFAULT_RULE)
    elif all(getattr(options, name) is None for name in ("threshold", *TARGETS)):
        if options.width:
            raise SettingsError('--width needs a plan. Add one, or pass --windows "" to prune width only.')
        run = _settled(experiment.run(options.run))
        return run, run.plan, {}
    else:
        step = chosen_plan(experiment, options)
        plan, threshold, similarity = step.plan, step.threshold, step.similarity
    plan, origin = replace(plan, width=width), None
    if options.planner:
        origin = experiment.origin_of(MergePlan.from_dict(data), method=options.planner)
    run = _settled(Run(experiment, options.run))
    if run.is_there() and not run.is_baseline and run.stage != "planned":
        changes = plan_changes(run.plan, plan)
        if changes and options.again:
            return run, plan, experiment.plan_entries(plan, threshold, similarity, origin=origin)
        refuse(run, changes)
    return experiment.create_run(options.run, plan, threshold, similarity, origin=origin), plan, {}


def run_all(options: argparse.Namespace) -> Result:
    """Result of `swm run`: the original and the run, from plan to scores."""
    from swm.stages.run import is_finished, run_pipeline

    settings = recovery_settings(options)
    run, plan, entries = _planned_run(options)
    recovery = None if options.no_recovery else settings
    if done := not options.again and is_finished(run, options.limit, recovery):
        message = f"Run {run.name} is already finished with these settings: nothing to do. Pass --again to repeat it."
    else:
        with watched(run, "run") as progress:
            run.check_plan(run.plan if entries else plan)
            run_pipeline(run, options.limit, recovery, progress, options.again, entries)
    data, text = compared(run)
    return data, (f"{message}\n\n" if done else "") + text


def run_control(options: argparse.Namespace) -> Result:
    """Result of `swm control`: the original, the run and its control."""
    from swm.stages.control import make_control

    run = own_experiment(options.exp).run(options.run)
    make_control(run, watched)
    return compared(run)


def run_study(options: argparse.Namespace) -> Result:
    """Result of `swm study`: its rows, and what failed."""
    from swm.reporting.figures import csv_text
    from swm.studies.abilities import abilities_conclusion, profiles_csv, profiles_of
    from swm.studies.rows import study_rows
    from swm.studies.run import run_study

    experiment = own_experiment(options.exp)
    grid = grid_of(experiment, options.kind, options.grid)
    if options.kind in OF_RUNS and options.against:
        parsed = Grid(**grid)
        methods = dict.fromkeys([*(cell.name for cell in cells_of(experiment, options.kind, parsed)), *parsed.methods])
        if options.against not in methods:
            raise SettingsError(f"The grid has no method '{options.against}'. Choose one of: {', '.join(methods)}.")
    with watched(experiment, "study") as progress:
        failed = run_study(experiment, options.kind, grid, progress)
    failures = "".join(f"\n{cell}: {reason}" for cell, reason in failed.items())
    if options.kind not in OF_RUNS:
        return {"study": options.kind, "failed": failed}, f"Done: {KINDS[options.kind]}{failures}"
    rows = study_rows(experiment, options.against)
    data = {"study": options.kind, "failed": failed, "rows": [row.to_dict() for row in rows]}
    profiles = profiles_of(experiment, [name for row in rows for name in row.runs])
    if not Grid(**grid).abilities or not profiles:
        return data, csv_text(rows) + failures
    said = abilities_conclusion(profiles)
    told = "\n\n".join(filter(None, [csv_text(rows), profiles_csv(profiles), said]))
    return {**data, "profiles": [each.to_dict() for each in profiles], "conclusion": said}, told + failures


def run_recover(options: argparse.Namespace) -> Result:
    """Result of `swm recover`: the settings and losses of the healed run."""
    from swm.stages.recover import check_recovery_text, recover_run

    settings = recovery_settings(options)
    run = _settled(own_experiment(options.exp).run(options.run))
    if not options.again:
        refuse(run, recovery_changes(run, settings))
        if run.stage == "recovered" and run.has_model:
            check_recovery_text(run, settings)
            message = (
                f"Run {run.name} is already healed with these settings: nothing to do. Pass --again to heal it again."
            )
            return {"run": run.name, **run.settings["recovery"]}, message
    with watched(run, "recover") as progress:
        summary = recover_run(run, settings, progress)
    losses = summary["held_out_losses"]
    loss = f"held-out loss {min(losses[1:]):.3f} ({losses[0]:.3f} before); " if losses[1:] else ""
    return {"run": run.name, **summary}, f"Recovered {run.name}: {loss}model in {run.model_folder}"


def run_evaluate(options: argparse.Namespace) -> Result:
    """Result of `swm evaluate`: perplexities and scores of the run."""
    tasks = parse_tasks(options.tasks)
    texts = [text.strip() for text in options.texts.split(",") if text.strip()]
    run = own_experiment(options.exp).run(options.run)
    from swm.stages.evaluate import evaluate_run

    with watched(run, "evaluate") as progress:
        data = evaluate_run(run, tasks, options.limit, progress, texts)
    return data, compared(run)[1]


def run_time(options: argparse.Namespace) -> Result:
    """Result of `swm time`: speed, latency and memory of the run."""
    run = own_experiment(options.exp).run(options.run)
    if options.client == "llama.cpp":
        return _in_llama_cpp(run, options.type or "Q8_0", options.tokens)
    if options.type:
        raise SettingsError("--type is for GGUF files. Add --client llama.cpp, or leave it out.")
    from swm.stages.time import time_run

    with watched(run, "time") as progress:
        data = time_run(run, options.tokens, progress)
    text = f"{data['tokens_per_second']:.1f} tokens per second, "
    text += f"{data['latency_ms']:.0f} ms for {data['new_tokens']} tokens"
    if "speedup" in data:
        text += f"; {speed_words(data['speedup'])}"
    return data, text


def _in_llama_cpp(run: Run, kind: str, new_tokens: int) -> Result:
    from swm.stages.time_in_llama_cpp import time_in_llama_cpp

    with watched(run, "time") as progress:
        data = time_in_llama_cpp(run, kind, new_tokens, progress)
    ratio, original = data["speedup"], data["baseline"]
    turns = f"{ratio['low']:.2f} to {ratio['high']:.2f} in {data['turns']} turns"
    threads = f"{data['threads']} thread{'s' * (data['threads'] > 1)}"
    return data, (
        f"llama.cpp, {kind}, {threads}: {data['tokens_per_second']:.1f} tokens per second (original "
        f"{original['tokens_per_second']:.1f}; {ratio['value']:.2f} times, {turns}). Perplexity of the file "
        f"{data['perplexity']:,.2f}, of the model that it was written from {data['perplexity_exact']:,.2f} (original "
        f"{original['perplexity']:,.2f})."
    )


def run_sweep(options: argparse.Namespace) -> Result:
    """Result of `swm sweep`: the state of each run."""
    from swm.jobs.sweep import Sweep
    from swm.jobs.sweep_file import load_grid
    from swm.jobs.workers import run_sweep

    sweep = Sweep.create(load_grid(Path(options.file)))
    if options.status:
        states = sweep.states()
    else:
        with tracked(sweep, "sweep", sys.argv[1:], device=False) as progress:
            states = run_sweep(sweep, progress, options.executor, options.workers, options.address)
    failed = sweep.failures()
    lines = [f"{state:12} {name}  {failed.get(name, '')}".rstrip() for name, state in states.items()]
    return {"sweep": sweep.name, "cells": states}, "\n".join(lines)


def run_repeat(options: argparse.Namespace) -> Result:
    """Result of `swm repeat`: the original model and the repeated run."""
    from swm.stages.repeat import repeat_recipe
    from swm.workspace.recipe import read_recipe

    run = repeat_recipe(read_recipe(Path(options.file)), options.name, watched)
    return compared(run)


def run_demo(options: argparse.Namespace) -> Result:
    """Result of `swm demo`: the runs of the demo experiment."""
    from swm.stages.demo import run_demo as demo

    experiment = demo(options.name, options.limit, options.steps, watched)
    from swm.reporting.compare import compare
    from swm.reporting.figures import table
    from swm.reporting.judged import judged

    rows = judged(compare(experiment))
    return {"runs": [row.to_dict() for row in rows]}, table(rows)


def _settled(run: Run) -> Run:
    """The run, after settling what a killed job left unfinished: only then does run.json match the folder."""
    if world_size() == 1 and not run.is_baseline and run.is_there():
        with job_lock(run):
            run.mend()
    return run
