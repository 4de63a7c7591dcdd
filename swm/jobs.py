"""Start, follow, cancel and resume a stage in a child process. The folder of the experiment or run is the interface."""

from __future__ import annotations

import codecs
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from filelock import FileLock, Timeout

from swm.errors import Cancelled, ExperimentError, JobError, SwmError
from swm.experiments import Experiment
from swm.files import (
    check_space,
    child_environment,
    demo_experiment,
    full_disk_message,
    home,
    is_full_disk,
    replace_file,
)
from swm.machine import is_out_of_memory, memory_kills
from swm.parallel import rank, world_size
from swm.states import HEARTBEAT_SECONDS, State, this_process
from swm.tracked import Tracked, job_lock, read_only_message

log = logging.getLogger(__name__)

Target = Tracked  # an experiment, a run or a sweep
BESIDE = "failed-beside.txt"  # what a process other than the first one ended with
SPACE_BYTES = 2**18  # for the small files of any stage; those with large ones look for themselves


class Tracker:
    """Writes the state of a running stage: progress when it comes, a heartbeat when it does not."""

    def __init__(self, target: Target, state: State) -> None:
        self._target, self.state = target, state
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._written = 0.0
        self._process = psutil.Process()
        self.cancelled = False
        self._failure: SwmError | None = None
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __call__(self, done: int, total: int, text: str) -> None:
        """Progress of the stage; raises Cancelled when the user asked for that."""
        if self.cancelled:
            raise Cancelled
        if self._failure:
            raise self._failure
        self.state = replace(self.state, done=done, total=total, text=text)
        if time.monotonic() - self._written > 0.5:
            self.write()

    def write(self, **changes: object) -> None:
        with self._lock:
            used = {
                "memory_bytes": self._process.memory_info().rss,
                "cpu_percent": self._process.cpu_percent(),
                "gpu_memory_bytes": _gpu_memory_bytes(),
            }
            self.state = replace(self.state, heartbeat=time.time(), **used, **changes)  # type: ignore[arg-type]
            self._target.write_state(self.state)
            self._written = time.monotonic()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.write()
            except JobError as error:  # its folder is gone; the next progress report ends the stage
                self._failure = error
            except SwmError as error:  # a full disk must not end the stage's own error handling
                log.warning("%s", error)


@contextmanager
def tracked(target: Target, stage: str, command: Sequence[str] = (), device: bool = True) -> Iterator[Tracker]:
    """Run a stage in this process with its state on disk: queued, running, then done, failed or cancelled.

    One stage at a time for each target (a second is refused) and for each machine (a second waits). SIGTERM and
    SIGINT cancel at the next progress report.

    Args:
        device: whether the stage computes on this machine's device, named by SWM_DEVICE where there are several.

    Raises:
        JobError: if the target has a job already.
    """
    if target.read_only:
        raise JobError(read_only_message(target.name))
    with job_lock(target), _tracked(target, stage, command, device) as tracker:
        yield tracker


@contextmanager
def _tracked(target: Target, stage: str, command: Sequence[str], computes: bool) -> Iterator[Tracker]:
    name = re.sub(r"[^A-Za-z0-9-]", "-", os.environ.get("SWM_DEVICE", ""))[:100]
    device = FileLock(home() / (f".device-{name}.lock" if name else ".device.lock"))
    now = time.time()
    state = State(stage, "queued", started=now, heartbeat=now, command=tuple(command), **this_process())
    tracker = Tracker(target, state)
    restore = _on_signals(tracker)
    try:
        (target.folder / BESIDE).unlink(missing_ok=True)
        tracker.write()
        tracker.start()
        if computes:
            _acquire(device, tracker)
        target.mend()
        check_space(target.folder, SPACE_BYTES)
        tracker.write(status="running", started=time.time(), text="starting")
        yield tracker
        tracker.stop()
        tracker.write(status="done", text="", done=tracker.state.total)
    except BaseException as error:
        tracker.stop()
        told = _explained(error, target) or _ended_beside(tracker, target)
        if told is None and isinstance(error, Cancelled):
            tracker.write(status="cancelled", error="")
            raise
        _write_failure(tracker, f"{told}" if told else _unexpected(error))
        if told is None or told is error:
            raise
        raise told from error
    finally:
        restore()
        device.release()


@contextmanager
def beside(target: Target) -> Iterator[None]:
    """A stage in a process beside the first one: what ends it is left in the folder for the first one to tell."""
    try:
        yield
    except Exception as error:
        told = _explained(error, target)
        message = f"Process {rank()} of {world_size()}: {told or _unexpected(error)}"
        file = target.folder / BESIDE
        with suppress(OSError, SwmError):  # the message on stderr has to do
            if target.is_there() and not file.exists():  # the first that ended is the one to tell of
                replace_file(file, message.encode("utf-8", "replace"))
        if told is None or told is error:
            raise
        raise told from error


def _ended_beside(tracker: Tracker, target: Target) -> SwmError | None:
    """Why another process of the stage ended, if one did: the launcher then ends this one too."""
    if world_size() == 1:
        return None
    file = target.folder / BESIDE
    if file.is_file():
        return JobError(file.read_text(encoding="utf-8"))
    if memory_kills() > tracker.state.memory_kills:
        return JobError(
            "The stage ended, and this machine ran out of memory meanwhile: the kernel ended a process. Use fewer "
            "processes, a smaller batch or --dtype bfloat16, and start it again: what was finished is kept."
        )
    return None


def _explained(error: BaseException, target: Target) -> SwmError | None:
    """What the user can mend; None for a mistake of ours."""
    if isinstance(error, SwmError):
        return error
    if is_full_disk(error):
        return ExperimentError(full_disk_message(target.folder, SPACE_BYTES))
    if is_out_of_memory(error):
        return JobError("Out of memory. Use shorter or fewer texts, a smaller batch, or --dtype bfloat16.")
    return None


def _unexpected(error: BaseException) -> str:
    return f"Unexpected error: {type(error).__name__}: {error}. The log has the details."


def _gpu_memory_bytes() -> int:
    """What this process has allocated on its GPU; torch is asked only when the stage has loaded it."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.memory_allocated()) if torch and torch.cuda.is_initialized() else 0


def start(target: Target, stage: str, arguments: Sequence[str]) -> int:
    """Start `python -m swm ARGUMENTS` for a target in a child process that outlives this one; gives its pid.

    Raises:
        JobError: if the target has a job already, or is read-only.
    """
    if target.read_only:
        raise JobError(read_only_message(target.name))
    with job_lock(target):  # two that click at once: the second sees the first's state
        if target.state().active:
            raise JobError(f"{target.name} has a job running. Wait for it, or cancel it first.")
        with (target.folder / "job.log").open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "swm", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=Path(__file__).parents[1],
                env=child_environment(PYTHONUNBUFFERED="1"),
            )
        now = time.time()
        who = this_process(psutil.Process(child.pid))
        first = State(stage, "queued", text="starting", started=now, heartbeat=now, command=tuple(arguments), **who)
        target.write_state(first)  # until the child speaks for itself
    threading.Thread(target=_wait_for, args=(child, target, first), daemon=True).start()
    return child.pid


def _wait_for(child: subprocess.Popen[bytes], target: Target, first: State) -> None:
    """Leave no zombie, and tell of a child that ended before it could write its own state."""
    code = child.wait()
    try:
        state = target.state()
        silent = (state.pid, state.started) == (first.pid, first.started)  # it never wrote a state of its own
        if silent and code == -signal.SIGTERM:  # cancelled when it was too young to end in good order
            target.write_state(replace(first, status="cancelled"))
        elif silent and code > 0:
            last = target.log_tail(1) or f"exit code {code}"
            target.write_state(replace(first, status="failed", error=f"The job could not start: {last}"))
        elif code < 0 and state.status == "interrupted" and state.pid == child.pid:
            target.write_state(state)  # with the reason as it is now: later it might be taken for another
    except SwmError as error:
        log.warning("%s", error)


def call(arguments: Sequence[str], timeout_seconds: float = 900) -> Any:
    """Run a short command in a child process and give its JSON object.

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
            cwd=Path(__file__).parents[1],
            env=child_environment(),
        )
    except subprocess.TimeoutExpired:
        raise JobError(f"No answer within {timeout_seconds:.0f} seconds. Run it in a terminal to see why.") from None
    if done.returncode:
        raise JobError("\n".join(done.stderr.strip().splitlines()[-3:]) or f"It ended with {done.returncode}.")
    return json.loads(done.stdout)


def stream(arguments: Sequence[str], on_end: Callable[[str], None] | None = None) -> Iterator[str]:
    """Output of a command in a child process, piece by piece; the child ends when nobody listens any more.

    Args:
        on_end: given the last line that the command wrote to stderr, when it ended well.

    Raises:
        JobError: with the command's own message when it fails.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "swm", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        env=child_environment(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8"),
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while piece := os.read(child.stdout.fileno(), 4096):
                yield decoder.decode(piece)
        finally:
            child.terminate()
        code, message = child.wait(), child.stderr.read().decode("utf-8", "replace").strip()
        if on_end and code <= 0 and message:
            on_end(message.splitlines()[-1])
        if code > 0:
            raise JobError(message.splitlines()[-1] if message else f"It ended with {child.returncode}.")


def cancel(target: Target) -> None:
    """Ask the target's job to stop; it ends at its next progress report and keeps what is finished.

    Raises:
        JobError: if there is no job, or it runs on another machine.
    """
    state = target.state()
    if demo_experiment():
        raise JobError("This is a demo: it is read-only.")
    if not state.active:
        raise JobError(f"{target.name} has no job running.")
    if state.host != socket.gethostname():
        raise JobError(f"The job of {target.name} runs on {state.host}. Cancel it there.")
    if state.pid == os.getpid():
        raise JobError(f"The job of {target.name} runs in this very process. Press Ctrl-C instead.")
    os.kill(state.pid, signal.SIGTERM)


def active_targets(experiments: Sequence[Experiment]) -> list[tuple[Target, State]]:
    """Every experiment and run that has a job queued or running."""
    found: list[tuple[Target, State]] = []
    for experiment in experiments:
        targets: list[Target] = [] if experiment.read_only else [experiment, *experiment.runs()]
        found += [(target, state) for target in targets if (state := target.state()).active]
    return found


def _acquire(device: FileLock, tracker: Tracker) -> None:
    home().mkdir(parents=True, exist_ok=True)
    while True:
        try:
            device.acquire(timeout=0.5)
            return
        except Timeout:
            tracker(0, 0, "waiting for another job on this machine")


def _write_failure(tracker: Tracker, message: str) -> None:
    try:
        tracker.write(status="failed", error=message)
    except SwmError as error:  # the disk is full: the message on stderr has to do
        log.warning("%s", error)


def _on_signals(tracker: Tracker) -> Callable[[], None]:
    """Let SIGTERM and SIGINT cancel; gives a function that puts the former handlers back."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def handler(number: int, frame: FrameType | None) -> None:
        if tracker.cancelled and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        tracker.cancelled = True

    former = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, previous in former.items():
            signal.signal(number, previous)

    return restore
