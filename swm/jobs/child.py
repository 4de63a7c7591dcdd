"""Starts, monitors and cancels a stage in a child process. The folder of the experiment or run is the interface."""

from __future__ import annotations

import codecs
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import IO, Any

import psutil

from swm.disk.files import APP_FOLDER, demo_experiment, home, matching
from swm.disk.names import NAME, check_new, experiments_folder
from swm.errors import JobError, SwmError
from swm.jobs.cluster import cluster, stop, submit
from swm.jobs.sweep import FILE, Sweep
from swm.jobs.tracking import Target, log
from swm.workspace.experiments import Experiment
from swm.workspace.people import child_environment, person, record
from swm.workspace.state import State, this_process
from swm.workspace.tracked import job_lock

END, NEXT = "\x1f", "\x1e"  # in the output of several runs' answers: after an answer, and after its speed


def start(target: Target, stage: str, arguments: Sequence[str]) -> int:
    """The pid of a new child process that runs `python -m swm ARGUMENTS` for a target and outlives this one.

    With a cluster (see `swm.jobs.cluster`) the job runs there, and the pid is 0.

    Raises:
        JobError: if the target already has a job, or is read-only.
    """
    if target.read_only:
        raise JobError(target.why_read_only())
    with job_lock(target):  # of two simultaneous clicks, the second sees the first's state
        if target.state().active:
            raise JobError(f"{target.name} has a job running. Wait for it, or cancel it first.")
        if cluster():
            return submit(target, stage, arguments).pid
        with (target.folder / "job.log").open("wb") as output:
            child = _detached(arguments, output)
        now = time.time()
        identity = this_process(psutil.Process(child.pid))
        command = tuple(arguments)
        first = State(stage, "queued", text="starting", started=now, heartbeat=now, command=command, **identity)
        first = replace(first, person=person().name)
        target.write_state(first)  # until the child writes its own
    threading.Thread(target=_wait_for, args=(child, target, first), daemon=True).start()
    return child.pid


def _detached(arguments: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """A new process that runs `python -m swm ARGUMENTS`, outlives this one and writes all it says to `output`."""
    return subprocess.Popen(
        [sys.executable, "-m", "swm", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=APP_FOLDER,
        env=child_environment(PYTHONUNBUFFERED="1"),
    )


def create(name: str, arguments: Sequence[str]) -> None:
    """Run a `create` that goes on to measure; returns once the experiment is there and its measuring has begun.

    Raises:
        JobError: with the command's own message if it fails before that. ExperimentError: if the name is taken.
    """
    if cluster():
        call([argument for argument in arguments if argument != "--measure"])
        start(Experiment.open(name), "measure", ["measure", name])
        return
    check_new(name)  # the state of an experiment that is there already would be taken for the new one's
    with tempfile.TemporaryFile() as output:
        child = _detached(arguments, output)
        threading.Thread(target=child.wait, daemon=True).start()
        experiment = experiments_folder() / name
        while child.poll() is None and not (experiment / "state.json").is_file():
            time.sleep(0.1)
        if child.poll():
            output.seek(0)
            lines = output.read().decode("utf-8", "replace").strip().splitlines()
            raise JobError(lines[-1] if lines else f"Exit code {child.returncode}, no message.")


def _wait_for(child: subprocess.Popen[bytes], target: Target, first: State) -> None:
    """Reap the child; record its end if it could not write a state of its own."""
    code = child.wait()
    try:
        state = target.state()
        if code < 0 and code != -signal.SIGTERM:
            record(first.stage, target.full_name, "interrupted", first.command, first.person)
        silent = (state.pid, state.started) == (first.pid, first.started)  # it never wrote a state of its own
        if silent and code == -signal.SIGTERM:  # cancelled before it could shut down cleanly
            target.write_state(replace(first, status="cancelled"))
        elif silent and code == 0:  # there was nothing to do
            target.write_state(replace(first, status="done", text="", heartbeat=time.time()))
        elif silent and code > 0:
            last = target.log_tail(1) or f"exit code {code}"
            target.write_state(replace(first, status="failed", error=f"The job could not start: {last}"))
        elif code < 0 and state.status == "interrupted" and state.pid == child.pid:
            target.write_state(state)  # with the reason as known now: a later check could find another
    except SwmError as error:
        log.warning("%s", error)


def call(arguments: Sequence[str], timeout_seconds: float = 900) -> Any:
    """The JSON object that a short command prints, run in a child process.

    Raises:
        JobError: with the command's own message when it fails.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "swm", *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            cwd=APP_FOLDER,
            env=child_environment(),
        )
    except subprocess.TimeoutExpired:
        raise JobError(f"No answer within {timeout_seconds:.0f} seconds. Run it in a terminal to see why.") from None
    if done.returncode:
        raise JobError("\n".join(done.stderr.strip().splitlines()[-3:]) or f"Exit code {done.returncode}, no message.")
    return json.loads(done.stdout)


def stream_answers(experiment: str, runs: Sequence[str], prompt: str, tokens: int) -> Iterator[tuple[int, str, bool]]:
    """What the runs' models answer, from one child process: place of the run, a piece of its answer, and whether that
    is instead a line on its speed, which comes last.

    Raises:
        JobError: with the command's own message when it fails.
    """
    arguments = ["answer", experiment, *runs, "--prompt", prompt, "--tokens", str(tokens)]
    speeds: list[str] = []
    place, ended = 0, False
    for text in stream(arguments, speeds.append):
        for piece in re.split(f"([{END}{NEXT}])", text):
            if piece in (END, NEXT):
                place, ended = place + (piece == NEXT), piece == END
            elif piece and place < len(runs):  # the command ends with a line break
                yield place, piece, ended
    if len(runs) == 1 and speeds:
        yield 0, speeds[-1], True


def stream(arguments: Sequence[str], on_end: Callable[[str], None] | None = None) -> Iterator[str]:
    """Output of a command in a child process, piece by piece; the child ends when the iterator is closed.

    Args:
        on_end: called with the last line of the command's stderr, unless the command failed.

    Raises:
        JobError: with the command's own message when it fails.
    """
    with (
        tempfile.TemporaryFile() as log_file,  # a pipe that is read only at the end could fill up and block the command
        subprocess.Popen(
            [sys.executable, "-m", "swm", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_file,
            cwd=APP_FOLDER,
            env=child_environment(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8"),
        ) as child,
    ):
        assert child.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while piece := os.read(child.stdout.fileno(), 4096):
                yield decoder.decode(piece)
        finally:
            child.terminate()
        code = child.wait()
        log_file.seek(0)
        message = log_file.read().decode("utf-8", "replace").strip()
        if on_end and code <= 0 and message:
            on_end(message.splitlines()[-1])
        if code > 0:
            raise JobError(message.splitlines()[-1] if message else f"Exit code {child.returncode}, no message.")


def cancel(target: Target) -> None:
    """Ask the target's job to stop; it ends at its next progress report and keeps what is finished.

    Raises:
        JobError: if there is no job, or it runs on another machine.
    """
    state = target.state()
    if target.read_only:
        raise JobError(target.why_read_only())
    if not state.active:
        raise JobError(f"{target.name} has no job running.")
    if state.cluster_job:
        stop(target, state)
        return
    if state.host != socket.gethostname():
        raise JobError(f"The job of {target.name} runs on {state.host}. Cancel it there.")
    if state.pid == os.getpid():
        raise JobError(f"The job of {target.name} runs in this process. Press Ctrl-C instead.")
    os.kill(state.pid, signal.SIGTERM)


def active_targets(experiments: Sequence[Experiment]) -> list[tuple[Target, State]]:
    """Every experiment, run and sweep that has a job queued or running."""
    return [(target, state) for target in all_targets(experiments) if (state := target.state()).active]


def all_targets(experiments: Sequence[Experiment]) -> list[Target]:
    """Everything that can have a job: experiments, their runs, and sweeps."""
    names = [file.parent.name for file in matching(home() / "sweeps", f"*/{FILE}")]
    targets: list[Target] = [Sweep(name) for name in names if NAME.fullmatch(name) and not demo_experiment()]
    for experiment in experiments:
        targets += [] if experiment.fixed else [experiment, *experiment.runs()]
    return targets
