"""Commands that show, export, cancel or delete: compare, report, export, answer, app, cancel, delete."""

from __future__ import annotations

import argparse
import logging
import os
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

from swm.cli.plans import Result, own_experiment
from swm.cli.watched import watched
from swm.disk.files import APP_FOLDER, demo_experiment
from swm.disk.names import read_only_message
from swm.errors import ExperimentError, SettingsError, printable
from swm.jobs.child import END, NEXT, cancel
from swm.progress import no_progress
from swm.workspace.experiments import Experiment
from swm.workspace.housekeeping import check_idle_above, delete, rename
from swm.workspace.people import child_environment
from swm.workspace.runs import Run

UNMARKED = str.maketrans("", "", END + NEXT)  # what a model writes holds no marks


def run_compare(options: argparse.Namespace) -> Result:
    """Result of `swm compare`: all runs side by side."""
    from swm.reporting.compare import compare
    from swm.reporting.figures import csv_text, table
    from swm.reporting.judged import judged

    rows = judged(compare(Experiment.open(options.exp)))
    return {"runs": [row.to_dict() for row in rows]}, csv_text(rows) if options.csv else table(rows)


def run_report(options: argparse.Namespace) -> Result:
    """Result of `swm report`: the file it wrote."""
    from swm.reporting.report import write_report

    if demo_experiment():
        raise ExperimentError(read_only_message(options.exp))
    write_report(Experiment.open(options.exp), options.output)
    return {"file": str(options.output)}, f"Report written to {options.output}"


def run_export(options: argparse.Namespace) -> Result:
    """Result of `swm export`: the folder or file it wrote."""
    from swm.reporting.export import check_export, export_run

    run, path, count = own_experiment(options.exp).run(options.run), Path(options.folder), options.without_attention
    form = check_export(run, path, options.format, options.type)
    if count is not None:
        from swm.stages.without_attention import check_attention

        if form.name != "gguf":
            raise SettingsError(f"--without-attention is for GGUF files, not for format {form.name}. Leave it out.")
        check_attention(run, path.absolute(), count, options.type)
    # a job, so that no other one changes the weights that are read; formats of one text take no time
    with watched(run, "export", device=count is not None) if form.write else nullcontext(no_progress) as progress:
        if form.write:
            check_idle_above(run)
        if count is not None:
            from swm.stages.without_attention import cost_sentence, export_without_attention

            result = export_without_attention(run, path, count, options.type, progress)
            said = f"Exported to {path}. {cost_sentence(result, run.plan.layers_left)}"
            return {"folder": str(path), **result}, said
        export_run(run, path, options.format, options.type, progress)
    return {"folder": str(path)}, f"Exported to {path}"


def run_answer(options: argparse.Namespace) -> Result:
    """Result of `swm answer`: the runs' continuations of a prompt, printed as they are generated.

    Where several runs answer and no person reads, each answer ends with END, its speed and NEXT.
    """
    experiment, names = Experiment.open(options.exp), [options.run, *options.more]
    if not options.prompt:
        raise SettingsError("The prompt is empty. Write a few words to continue.")
    from swm.evaluation.answers import Answer
    from swm.stages.ask import models_of

    several, read = len(names) > 1, sys.stdout.isatty()
    found = []
    for run, model, tokenizer in models_of(experiment, names):
        answer, pieces = Answer(model, tokenizer), []
        if several and read and not options.json:
            print(f"\n{run.name}:")
        for piece in answer.pieces(options.prompt, options.tokens):
            pieces.append(piece)
            if not options.json:
                print(printable(piece) if read else piece.translate(UNMARKED), end="", flush=True)
        if not options.json:
            if several and not read:
                print(f"{END}{answer.speed}{NEXT}", end="", flush=True)
            else:
                print(f"\n{answer.speed}", file=sys.stderr)
        found.append({"run": run.name, "prompt": options.prompt, "answer": "".join(pieces), "speed": answer.speed})
    return ({"answers": found} if several else found[0]), ""


def run_app(options: argparse.Namespace) -> Result:
    """Start the app in this process, which ends with it."""
    app = APP_FOLDER / "app.py"
    if not app.is_file():
        raise ExperimentError(f"There is no {app}: the app is only in the source folder. Run `make app` there.")
    if options.port is not None and not 1 <= options.port <= 65_535:
        raise SettingsError(f"--port {options.port} is out of range. Choose 1 to 65,535.")
    os.environ |= child_environment(**({"SWM_DEMO": options.demo} if options.demo else {}))
    os.chdir(app.parent)  # streamlit looks for its settings here
    _load_first()
    logging.getLogger("swm").setLevel(logging.WARNING)  # a cluster that does not answer would be told each time
    port = ["--server.port", str(options.port)] if options.port else []  # otherwise as streamlit is told elsewhere
    sys.argv = ["streamlit", "run", str(app), *port]
    runpy.run_module("streamlit", run_name="__main__", alter_sys=True)
    raise AssertionError("streamlit ends the process")


def _load_first() -> None:
    """Load libraries that the first page needs before there is an address to open; otherwise that page is slow.

    Not in a thread beside streamlit's start: two threads that load libraries at once can wait for each other forever.
    """
    import pandas  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import scipy.special  # noqa: F401


def run_cancel(options: argparse.Namespace) -> Result:
    """Result of `swm cancel`: whose job was asked to stop."""
    target = _target(options)
    cancel(target)
    return {"cancelled": target.name}, f"Asked the job of {target.name} to stop."


def run_delete(options: argparse.Namespace) -> Result:
    """Result of `swm delete`: what was deleted."""
    target = _target(options)
    delete(target)
    return {"deleted": target.name}, f"Deleted {target.name}."


def run_rename(options: argparse.Namespace) -> Result:
    """Result of `swm rename`: the old and the new name."""
    target = _target(options)
    renamed = rename(target, options.to)
    return {"renamed": target.name, "to": renamed.name}, f"Renamed {target.name} to {renamed.name}."


def _target(options: argparse.Namespace) -> Experiment | Run:
    experiment = own_experiment(options.exp)
    return experiment.run(options.run) if options.run else experiment
