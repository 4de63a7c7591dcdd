"""The command line: one command for each stage. Results on stdout, progress and messages on stderr."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from swm import __version__
from swm.errors import Cancelled, ExperimentError, SwmError
from swm.experiments import BASELINE, Experiment, Run, Settings, delete, list_experiments
from swm.jobs import Target, cancel, tracked
from swm.plan import DEFAULT_RULE, RULES, MergePlan, parse_windows
from swm.presets import CHOICES, preset_settings

# Names for the help text only; the engine, which checks them, is loaded when a command runs.
METRIC_NAMES = "cka, cka-rbf, cka-biased, cosine, angular"
RECOVERY_COUNTS = ("steps", "batch", "accumulate", "length", "rank", "alpha", "warmup_steps", "held_out", "save_every")

Progress = Callable[[int, int, str], None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m swm`; exits with 0, 1 (the user can mend it) or 2 (wrong usage)."""
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("swm").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = build_parser().parse_args(arguments)
    try:
        result, text = options.run(options)
    except SwmError as error:
        sys.exit(_failed(str(error)))
    except Cancelled:
        sys.exit(_failed("Cancelled. What was finished is kept; the same command goes on from there."))
    except BrokenPipeError:
        sys.exit(1)
    print(json.dumps(result, allow_nan=False) if options.json else text)


def _failed(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


# ---- arguments ----------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m swm",
        description="See which layers of a language model are redundant, merge them, heal and compare.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], Any], help_text: str, *names: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text, description=help_text)
        for argument in names:
            command.add_argument(argument, metavar=argument.upper())
        command.add_argument("--json", action="store_true", help="one JSON object on stdout")
        command.set_defaults(run=run)
        return command

    add("models", run_models, "Models that load without a network, and how to name others.")
    add("list", run_list, "Experiments and their runs.")
    command = add("create", run_create, "A new experiment: model and calibration text.", "exp")
    command.add_argument("--model", required=True, help="bundled name, Hugging Face folder, .gguf file or hub id")
    command.add_argument(
        "--texts", default="lambada", help="lambada, squad, coqa, a .txt or .jsonl file, or a hub data set"
    )
    command.add_argument("--count", type=int, default=10, help="calibration texts (10)")
    command.add_argument("--length", type=int, default=128, help="tokens in each (128)")
    command.add_argument("--seed", type=int, default=1234)
    command.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    command = add("measure", run_measure, "Similarity of all layer pairs.", "exp")
    command.add_argument("--metric", default="cka", help=METRIC_NAMES)
    command = add("search", run_search, "Every plan for every threshold; goes on where it stopped.", "exp")
    _add_rule(command)
    command.add_argument("--from", dest="low", type=float, default=0.5, help="lowest threshold of interest (0.5)")
    command.add_argument("--focus", type=float, default=0.9, help="threshold to compute first (0.9)")
    command = add("plan", run_plan, "Which windows merge at a threshold, or for a number of layers.", "exp")
    _add_target(command, windows=False)
    command = add("merge", run_merge, "Merge the windows of a plan into a smaller model.", "exp", "run_name")
    _add_target(command, windows=True)
    command = add("recover", run_recover, "Heal a merged model with LoRA.", "exp", "run_name")
    _add_recovery(command)
    command = add("evaluate", run_evaluate, "Perplexity and zero-shot scores of a run.", "exp", "run_name")
    command.add_argument("--tasks", default="all", help="all (the paper's seven), or names with commas")
    command.add_argument("--limit", type=_limit, default=100, help="documents of each task (100), or none for all")
    command = add("time", run_time, "Latency, speed and memory of a run, in turn with the original.", "exp", "run_name")
    command.add_argument("--tokens", type=int, default=32, help="tokens to generate (32)")
    command = add(
        "run", run_all, "Merge, evaluate, recover, evaluate again and time: one run from plan to scores.", "exp"
    )
    command.add_argument("run_name", metavar="RUN")
    _add_target(command, windows=True)
    _add_recovery(command)
    command.add_argument("--limit", type=_limit, default=100, help="documents of each task (100), or none for all")
    command.add_argument("--no-recovery", action="store_true", help="leave healing out")
    command = add("compare", run_compare, "All runs side by side.", "exp")
    command.add_argument("--csv", action="store_true", help="comma-separated values")
    command = add("report", run_report, "One self-contained HTML page.", "exp")
    command.add_argument("--output", required=True, type=Path, metavar="FILE")
    add("export", run_export, "Copy a run's model, with a model card, to a folder.", "exp", "run_name", "folder")
    command = add("answer", run_answer, "Continue a prompt with a run's model.", "exp", "run_name")
    command.add_argument("--prompt", required=True)
    command.add_argument("--tokens", type=int, default=64)
    command = add("cancel", run_cancel, "Cancel the job of an experiment, or of one of its runs.", "exp")
    command.add_argument("run_name", nargs="?", metavar="RUN")
    command = add("delete", run_delete, "Delete an experiment, or one of its runs.", "exp")
    command.add_argument("run_name", nargs="?", metavar="RUN")
    command = add("demo", run_demo, "All of it on the bundled model with small settings.")
    command.add_argument("--name", default="demo", help="name of the experiment (demo)")
    command.add_argument("--limit", type=_limit, default=40, help="documents of each task (40)")
    command.add_argument("--steps", type=int, default=None, help="recovery steps, instead of the preset's")
    return parser


def _add_rule(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rule", default=DEFAULT_RULE, help=", ".join(RULES))


def _add_target(command: argparse.ArgumentParser, windows: bool) -> None:
    group = command.add_mutually_exclusive_group(required=True)
    group.add_argument("--threshold", type=float, help="merge while similarity is at least this, above 0, at most 1")
    group.add_argument("--layers", type=int, help="layers to keep")
    if windows:
        group.add_argument("--windows", help="windows by hand, both ends included, as in 27-28,25-26")
    _add_rule(command)


def _add_recovery(command: argparse.ArgumentParser) -> None:
    command.add_argument("--preset", default="quick", help="quick (minutes) or paper (hours, needs a network)")
    for name in (*RECOVERY_COUNTS, "seed"):
        command.add_argument(f"--{name.replace('_', '-')}", type=int, help="instead of the preset's")
    for name in ("learning-rate", "dropout"):
        command.add_argument(f"--{name}", type=float, help="instead of the preset's")
    command.add_argument("--texts", help="instructions, alpaca-cleaned, a .txt or .jsonl file, or a hub data set")
    command.add_argument("--loss-on", help="learn all tokens (text), or the answers only (response)")
    command.add_argument("--target", help="learn the text, or the original model's own output (original)")
    command.add_argument("--adapt", help="adapters in all layers, or in those from the lowest merged one up (above)")
    command.add_argument("--schedule", help="of the learning rate: cosine, linear or constant")


def _limit(text: str) -> int | None:
    return None if text == "none" else int(text)


@contextmanager
def watched(target: Target, stage: str) -> Iterator[Progress]:
    """The stage's progress on disk and, on a terminal, as a bar."""
    shape = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}"
    bar = tqdm(desc=stage, disable=not sys.stderr.isatty(), file=sys.stderr, bar_format=shape)
    with tracked(target, stage, sys.argv[1:]) as tracker, bar:

        def progress(done: int, total: int, text: str) -> None:
            tracker(done, total, text)
            bar.total, bar.n = total or None, done
            bar.set_postfix_str(text)

        yield progress


# ---- commands: each gives (JSON object, text) ---------------------------------------------------------------------

Result = tuple[Any, str]


def run_models(options: argparse.Namespace) -> Result:
    from swm.models import BUNDLED

    rows = {name: {"title": model.title, "licence": model.licence} for name, model in BUNDLED.items()}
    lines = [f"{name}  {model.title} ({model.licence})" for name, model in BUNDLED.items()]
    how = (
        "Besides: a Hugging Face folder (config.json and .safetensors), a .gguf file, or a hub id such as "
        "meta-llama/Llama-2-7b-hf, which needs a network the first time."
    )
    return {"bundled": rows}, "\n".join([*lines, how])


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

    experiment = _own(options.exp)
    with watched(experiment, "measure") as progress:
        data = stages.measure(experiment, options.metric, progress)
    matrix = data["matrix"]
    lines = [f"{data['metric']} of each layer and the next, {data['tokens']} tokens"]
    lines += [f"{i:3d} - {i + 1:<3d} {matrix[i][i + 1]:.4f}" for i in range(len(matrix) - 1)]
    return data, "\n".join(lines)


def run_search(options: argparse.Namespace) -> Result:
    from swm import stages

    experiment = _own(options.exp)
    with watched(experiment, "search") as progress:
        path = stages.search(experiment, options.rule, options.low, options.focus, progress)
    steps = path.intervals()
    lines = ["threshold above   up to     layers  similarity  windows"]
    lines += [
        f"{s.low:15.4f} {s.high:7.4f} {s.plan.layers_left:10d} {s.similarity:11.4f}  {_windows(s.plan)}" for s in steps
    ]
    data = {"rule": path.rule, "windows_tried": len(path.similarities), "plans": [step.to_dict() for step in steps]}
    return data, "\n".join(lines)


def run_plan(options: argparse.Namespace) -> Result:
    from swm import stages

    experiment = Experiment.open(options.exp)
    step = stages.plan_for(
        experiment,
        threshold=options.threshold,
        layers=options.layers,
        rule=options.rule,
        progress=stages.no_progress,
    )
    text = (
        f"{step.plan.layers_left} of {step.plan.layer_count} layers; windows {_windows(step.plan)}; similarity "
        f"{step.similarity:.4f}; the same for thresholds above {step.low:.4f} up to {step.high:.4f}"
    )
    return step.to_dict(), text


def run_merge(options: argparse.Namespace) -> Result:
    from swm import stages

    run = _planned_run(options)
    plan = run.plan
    with watched(run, "merge") as progress:
        stages.merge(run, progress)
    data = {"run": run.name, **plan.to_dict(), **run.settings["merge"], "folder": str(run.model_folder)}
    text = (
        f"Merged {_windows(plan)}: {plan.layers_left} of {plan.layer_count} layers, "
        f"{data['parameters'] / 1e6:,.1f} M parameters, in {run.model_folder}"
    )
    return data, text


def _planned_run(options: argparse.Namespace) -> Run:
    """The run with the plan that the options name; made if it is new."""
    from swm import stages

    experiment = _own(options.exp)
    if options.windows:
        plan = MergePlan(experiment.layer_count, parse_windows(options.windows), options.rule)
        return experiment.create_run(options.run_name, plan)
    step = stages.plan_for(experiment, threshold=options.threshold, layers=options.layers, rule=options.rule)
    return experiment.create_run(options.run_name, step.plan, step.threshold, step.similarity)


def run_all(options: argparse.Namespace) -> Result:
    from swm.pipeline import run_pipeline

    settings = _recovery_settings(options)
    run = _planned_run(options)
    run_pipeline(run, options.limit, None if options.no_recovery else settings, watched)
    from swm.compare import compare

    rows = [row for row in compare(run.experiment) if row["run"] in (BASELINE, run.name)]
    return {"runs": rows}, _table(run.experiment, run)


def _recovery_settings(options: argparse.Namespace) -> Any:
    names = (*RECOVERY_COUNTS, "seed", "learning_rate", "dropout", "texts", *CHOICES)
    return preset_settings(options.preset, **{name: getattr(options, name) for name in names})


def run_recover(options: argparse.Namespace) -> Result:
    from swm import stages

    settings = _recovery_settings(options)
    run = _own(options.exp).run(options.run_name)
    with watched(run, "recover") as progress:
        summary = stages.recover_run(run, settings, progress)
    losses = summary["held_out_losses"]
    told = f"held-out loss {losses[0]:.3f} -> {min(losses):.3f}; " if losses else ""
    return {"run": run.name, **summary}, f"Recovered {run.name}: {told}model in {run.model_folder}"


def run_evaluate(options: argparse.Namespace) -> Result:
    from swm import stages
    from swm.evaluate import parse_tasks

    tasks = parse_tasks(options.tasks)
    run = _own(options.exp).run(options.run_name)
    with watched(run, "evaluate") as progress:
        data = stages.evaluate(run, tasks, options.limit, progress)
    return data, _table(run.experiment, run)


def run_time(options: argparse.Namespace) -> Result:
    from swm import stages

    run = _own(options.exp).run(options.run_name)
    with watched(run, "time") as progress:
        data = stages.time_run(run, options.tokens, progress)
    text = f"{data['tokens_per_second']:.1f} tokens per second, "
    text += f"{data['latency_ms']:.0f} ms for {data['new_tokens']} tokens"
    if "speedup" in data:
        text += f"; {data['speedup']['value']:.2f} times the original"
    return data, text


def run_compare(options: argparse.Namespace) -> Result:
    from swm.compare import compare, csv_text, table

    rows = compare(Experiment.open(options.exp))
    return {"runs": rows}, csv_text(rows) if options.csv else table(rows)


def run_report(options: argparse.Namespace) -> Result:
    from swm.report import write_report

    write_report(Experiment.open(options.exp), options.output)
    return {"file": str(options.output)}, f"Report in {options.output}"


def run_export(options: argparse.Namespace) -> Result:
    from swm.report import export_run

    folder = export_run(_own(options.exp).run(options.run_name), Path(options.folder))
    return {"folder": str(folder)}, f"Model and model card in {folder}"


def run_answer(options: argparse.Namespace) -> Result:
    from swm import stages

    run = Experiment.open(options.exp).run(options.run_name)
    pieces = []
    for piece in stages.answer(run, options.prompt, options.tokens):
        pieces.append(piece)
        if not options.json:
            print(piece, end="", flush=True)
    return {"run": run.name, "prompt": options.prompt, "answer": "".join(pieces)}, ""


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


def _target(options: argparse.Namespace) -> Target:
    experiment = _own(options.exp)
    return experiment.run(options.run_name) if options.run_name else experiment


def _own(name: str) -> Experiment:
    """An experiment that may be written to."""
    experiment = Experiment.open(name)
    if experiment.read_only:
        raise ExperimentError(
            f"{name} holds results that ship with the program and is read-only. "
            f"Create your own: python -m swm create {name} --model {experiment.settings.model}"
        )
    return experiment


def _table(experiment: Experiment, run: Run) -> str:
    from swm.compare import compare, table

    return table([row for row in compare(experiment) if row["run"] in (BASELINE, run.name)])


def _windows(plan: MergePlan) -> str:
    return ",".join(map(str, plan.windows)) or "none"
