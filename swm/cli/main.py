"""Entry point of the command line. Results go to stdout, progress and messages to stderr."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from swm.cli.check import check_options
from swm.cli.explore import (
    run_abilities,
    run_create,
    run_estimate,
    run_list,
    run_measure,
    run_models,
    run_plan,
    run_search,
)
from swm.cli.make import (
    run_all,
    run_control,
    run_demo,
    run_evaluate,
    run_merge,
    run_recover,
    run_repeat,
    run_study,
    run_sweep,
    run_time,
)
from swm.cli.options import build_parser
from swm.cli.plans import Result
from swm.cli.show import (
    run_answer,
    run_app,
    run_cancel,
    run_compare,
    run_delete,
    run_export,
    run_rename,
    run_report,
)
from swm.errors import Cancelled, SwmError, printable
from swm.jobs.cluster import FOLDER, LOG, cluster, run_there
from swm.models.processes import is_first, world_size

# Commands that a cluster runs, if there is one.
SENT = (
    *(
        "measure",
        "abilities",
        "search",
        "plan",
        "merge",
        "recover",
        "evaluate",
        "time",
        "run",
        "control",
        "study",
        "sweep",
    ),
    *("demo", "export", "repeat", "answer"),
)
SPEED = re.compile(r"\n\d+ tokens: the first after [^\n]*\s*\Z")
SHARED = ("measure", "search", "plan", "recover", "evaluate")  # commands that several processes can run together


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `python -m swm`; exits with 0 (done), 1 (an error that the user can fix) or 2 (wrong usage)."""
    warnings.simplefilter("ignore")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("swm").setLevel(logging.INFO)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # transformers and bitsandbytes would run code of the hub
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns that it cannot
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):  # escape what the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = _with_windows(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(given)
    long = options.command in SENT or getattr(options, "measure", False)  # as in create --measure
    if cluster() and long and world_size() == 1:
        sys.exit(_sent(given, options))
    _take_job_settings()
    if world_size() > 1 and options.command not in SHARED:
        sys.exit(_failed(f"{options.command} runs in one process: start it without accelerate launch or torchrun."))
    if world_size() > 1 and getattr(options, "minutes", None):
        sys.exit(_failed("--minutes can give each process a different plan: choose --budget, or start a single one."))
    try:
        check_options(options)
        result, text = COMMANDS[options.command](options)
    except SwmError as error:
        sys.exit(_failed(str(error)))
    except Cancelled:
        sys.exit(_failed("Cancelled. Finished work is kept; repeat the command to continue."))
    except BrokenPipeError:
        sys.exit(1)
    if is_first():
        print(json.dumps(result, allow_nan=False) if options.json else printable(text))


def _with_windows(arguments: Sequence[str]) -> list[str]:
    """The arguments with "--windows -1-0" as "--windows=-1-0": argparse takes a value with a minus for an option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--windows" and argument[:1] == "-" and argument[1:2].isdigit():
            argument = f"{joined.pop()}={argument}"
        joined.append(argument)
    return joined


def _sent(arguments: Sequence[str], options: argparse.Namespace) -> int:
    """Run the command on the cluster, say what it says, and return its exit code; with JSON, only that on stdout."""
    said, shown, output = "", 0, sys.stderr if options.json else sys.stdout
    try:
        for piece in run_there(arguments):
            said += piece
            speed = SPEED.search(said)  # of an answer: a node's log has both streams in one
            end = speed.start() if speed else len(said)
            print(printable(said[shown:end]), end="", file=output, flush=True)
            shown = max(shown, end)
        print(printable(said[shown:]), end="", file=sys.stderr)
    except SwmError as error:
        return _failed(str(error)) if str(error) else 1
    if options.json:
        print(next((line for line in reversed(said.splitlines()) if line.startswith("{")), "{}"))
    if options.command == "export" and not Path(options.folder).exists():
        return _failed(
            f"{options.folder} is on the node that wrote it. Choose a folder that all machines see, as SWM_HOME."
        )
    return 0


def _take_job_settings() -> None:
    """As a job of a cluster: go where it was started, and write what is said to the target's log."""
    if folder := os.environ.pop(FOLDER, ""):
        os.chdir(folder)
    if file := os.environ.pop(LOG, ""):
        output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)


def _failed(message: str) -> int:
    print(printable(message), file=sys.stderr)
    return 1


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


COMMANDS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "models": run_models,
    "list": run_list,
    "create": run_create,
    "measure": run_measure,
    "abilities": run_abilities,
    "search": run_search,
    "plan": run_plan,
    "merge": run_merge,
    "recover": run_recover,
    "evaluate": run_evaluate,
    "time": run_time,
    "run": run_all,
    "control": run_control,
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
    "rename": run_rename,
    "app": run_app,
    "demo": run_demo,
}
