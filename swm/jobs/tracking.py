"""The state of a running stage: progress, time left, heartbeat, and how it ended."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import psutil
from filelock import FileLock, Timeout

from swm.disk.files import (
    check_space,
    full_disk_message,
    home,
    is_full_disk,
    is_lost_disk,
    lost_disk_message,
    replace_file,
)
from swm.disk.machine import is_out_of_memory, memory_kills, this_machine
from swm.errors import Cancelled, ExperimentError, JobError, SwmError
from swm.models.processes import rank, world_size
from swm.progress import UNLIKE, Progress
from swm.workspace.people import person, record
from swm.workspace.reading import state_in
from swm.workspace.shared_home import check_held, check_machine
from swm.workspace.state import HEARTBEAT_SECONDS, State, this_process
from swm.workspace.tracked import CLUSTER_JOB, Tracked, job_lock

log = logging.getLogger(__name__)


Target = Tracked  # an experiment, a run or a sweep


BESIDE = "failed-beside.txt"  # error of a process other than the first


SPACE_BYTES = 2**18  # for a stage's small files; stages with large files check for themselves
SURE_SECONDS, SURE_SHARE = 10.0, 0.05  # before that, a step foretells nothing
UNTOLD = (*range(5), UNLIKE)  # totals of steps with parts of several kinds, as loading, merging and saving


class Tracker:
    """Writes the state of a running stage: its progress, and a heartbeat in between."""

    def __init__(self, target: Target, state: State) -> None:
        self._target, self.state = target, state
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._written, self._pace = 0.0, Pace()
        self._process = psutil.Process()
        self.cancelled = False
        self._failure: SwmError | None = None
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __call__(self, done: int, total: int, text: str) -> None:
        """Record progress; raises Cancelled if the user cancelled the stage."""
        if self.cancelled:
            raise Cancelled
        if self._failure:
            raise self._failure
        self._pace.report(done, total, time.monotonic())
        self.state = replace(self.state, done=done, total=total, text=text)
        if time.monotonic() - self._written > 0.5:
            self.write()

    def write(self, **changes: object) -> None:
        """Write the state with a heartbeat, memory and CPU usage.

        Raises:
            JobError: if another job has taken over, because this machine was cut off from the others for a while.
        """
        with self._lock:
            if self._written:
                self._check_ours()
            usage = {
                "memory_bytes": self._process.memory_info().rss,
                "cpu_percent": self._process.cpu_percent(),
                "gpu_memory_bytes": _gpu_memory_bytes(),
                "seconds_left": round(self._pace.seconds_left(time.monotonic()), 1),
            }
            self.state = replace(self.state, heartbeat=time.time(), **usage, **changes)  # type: ignore[arg-type]
            self._target.write_state(self.state)
            self._written = time.monotonic()

    def _check_ours(self) -> None:
        found = state_in(self._target.folder / "state.json")
        if found.status == "interrupted":  # what others write of an earlier job, perhaps after this one began
            return
        sent = found.cluster_job and found.cluster_job != self.state.cluster_job
        if sent or (found.pid and not found.is_same_job(self.state)):
            raise JobError(
                f"{self._target.full_name} was taken over by a job on {found.host or 'the cluster'}, while this one "
                f"could not write to {home()}. Go on with that one: what it found here is kept."
            )

    def start(self) -> None:
        """Start the heartbeat."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the heartbeat."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                if self._target.asked_to_stop(self.state.cluster_job):
                    self.cancelled = True  # never reset: a signal may have set it meanwhile
                self.write()
                check_machine()
            except JobError as error:  # its folder is gone or another's: the next progress report ends the stage
                self._failure = error
            except (SwmError, OSError) as error:  # a full or distant disk must not end the stage's own error handling
                log.warning("%s", error)


@contextmanager
def tracked(target: Target, stage: str, command: Sequence[str] = (), device: bool = True) -> Iterator[Tracker]:
    """Run a stage in this process and keep its state on disk: queued, running, then done, failed or cancelled.

    One stage at a time for each target (a second is refused) and for each machine (a second waits). SIGTERM and
    SIGINT cancel it at the next progress report.

    Args:
        device: whether the stage uses this machine's device, named by SWM_DEVICE if there are several.

    Raises:
        JobError: if the target already has a job.
    """
    if target.read_only:
        raise JobError(target.why_read_only())
    with job_lock(target):
        check_held(target.folder)
        with _tracked(target, stage, command, device) as tracker:
            yield tracker


@contextmanager
def _tracked(target: Target, stage: str, command: Sequence[str], computes: bool) -> Iterator[Tracker]:
    device = device_lock()
    now = time.time()
    state = State(stage, "queued", started=now, heartbeat=now, command=tuple(command), **this_process())
    state = replace(state, cluster_job=os.environ.get(CLUSTER_JOB, ""), person=person().name)
    tracker = Tracker(target, state)
    restore = _on_signals(tracker)
    try:
        (target.folder / BESIDE).unlink(missing_ok=True)
        tracker.write()
        record(stage, target.full_name, "started", command)
        tracker.start()
        if computes:
            acquire(device, f"{stage} of {target.full_name}", tracker)
        target.mend()
        check_space(target.folder, SPACE_BYTES)
        tracker.write(status="running", started=time.time(), text="starting")
        yield tracker
        tracker.stop()
        tracker.write(status="done", text="", done=tracker.state.total)
    except BaseException as error:
        tracker.stop()
        explained = _explained(error, target) or _ended_beside(tracker, target)
        if explained is None and isinstance(error, Cancelled):
            tracker.write(status="cancelled", error="")
            raise
        _write_failure(tracker, f"{explained}" if explained else _unexpected(error))
        if explained is None or explained is error:
            raise
        raise explained from error
    finally:
        restore()
        with suppress(OSError):  # on a disk that was lost they ended with the connection
            release(device)
        with suppress(OSError, ExperimentError):
            record(stage, target.full_name, tracker.state.status, command)


@contextmanager
def beside(target: Target) -> Iterator[None]:
    """Run a stage in a process other than the first; its error goes to a file, which the first process reports."""
    try:
        yield
    except Exception as error:
        explained = _explained(error, target)
        message = f"Process {rank()} of {world_size()}: {explained or _unexpected(error)}"
        file = target.folder / BESIDE
        with suppress(OSError, SwmError):  # then the message on stderr must suffice
            if target.is_there() and not file.exists():  # report the first error only
                replace_file(file, message.encode("utf-8", "replace"))
        if explained is None or explained is error:
            raise
        raise explained from error


def _ended_beside(tracker: Tracker, target: Target) -> SwmError | None:
    """Why another process of the stage ended, if one did; the launcher then stops this one too."""
    if world_size() == 1:
        return None
    file = target.folder / BESIDE
    if file.is_file():
        return JobError(file.read_text(encoding="utf-8"))
    if memory_kills() > tracker.state.memory_kills:
        return JobError(
            "This machine ran out of memory during the stage, and the kernel killed a process. Use fewer processes, "
            "a smaller batch or --dtype bfloat16, and start it again: finished work is kept."
        )
    return None


def _explained(error: BaseException, target: Target) -> SwmError | None:
    """The error as one that the user can fix; None for a bug."""
    if isinstance(error, SwmError):
        return error
    if is_full_disk(error):
        return ExperimentError(full_disk_message(target.folder, SPACE_BYTES))
    if is_lost_disk(error):
        return ExperimentError(lost_disk_message(target.folder, error))
    if is_out_of_memory(error):
        return JobError("Out of memory. Use shorter or fewer texts, a smaller batch, or --dtype bfloat16.")
    return None


def _unexpected(error: BaseException) -> str:
    return f"Unexpected error: {type(error).__name__}: {error}. The log has the details."


def _gpu_memory_bytes() -> int:
    """Memory that this process allocated on its GPU; 0 if the stage has not loaded torch."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.memory_allocated()) if torch and torch.cuda.is_initialized() else 0


def _write_failure(tracker: Tracker, message: str) -> None:
    try:
        tracker.write(status="failed", error=message)
    except (SwmError, OSError) as error:  # the disk is full or gone: the message on stderr must suffice
        tracker.state = replace(tracker.state, status="failed")
        log.warning("%s", error)


def _on_signals(tracker: Tracker) -> Callable[[], None]:
    """Let SIGTERM and SIGINT cancel the stage; returns a function that restores the former handlers."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None

    def handler(number: int, frame: FrameType | None) -> None:
        if tracker.cancelled and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C stops at once
        tracker.cancelled = True

    former = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, previous in former.items():
            signal.signal(number, previous)

    return restore


class Pace:
    """The time left of the step that runs: a row of progress reports with one total and a growing count.

    The pace is that of the later half of its time, so that it follows a machine whose load changes.
    """

    def __init__(self) -> None:
        self._total = self._first = 0
        self._began = 0.0
        self._reports: deque[tuple[float, int]] = deque([(0.0, 0)])  # of the later half: time and count, both growing

    def report(self, done: int, total: int, now: float) -> None:
        """Note progress at the time `now`, in seconds; another total or a smaller count begins another step."""
        reports = self._reports
        if total != self._total or done < reports[-1][1]:
            self._total, self._first, self._began = total, done, now
            self._reports = reports = deque([(now, done)])  # never empty: the heartbeat reads it in its own thread
        if done > reports[-1][1]:
            reports.append((now, done))
        middle = (self._began + now) / 2
        while len(reports) > 2 and reports[1][0] <= middle:
            reports.popleft()

    def seconds_left(self, now: float) -> float:
        """Seconds until the step ends, if it goes on as it did; 0 if that cannot be foretold yet."""
        reports = self._reports
        (start, before), (reported, done) = reports[0], reports[-1]
        whole, took = self._total - self._first, reported - self._began
        if self._total in UNTOLD or took < SURE_SECONDS or not whole > done - self._first >= SURE_SHARE * whole:
            return 0.0
        if before >= done:
            return 0.0
        return max(1.0, (reported - start) * (self._total - done) / (done - before) - (now - reported))


def device_lock() -> FileLock:
    """The lock of the device named by SWM_DEVICE, by default this machine's: others may share the home."""
    name = re.sub(r"[^A-Za-z0-9-]", "-", os.environ.get("SWM_DEVICE") or this_machine())[:100]
    return FileLock(home() / f".device-{name}.lock")


def acquire(device: FileLock, job: str, progress: Progress) -> None:
    """Wait for the device, and say who has it; `progress` may raise Cancelled.

    Args:
        job: what to call the job that gets it.
    """
    home().mkdir(parents=True, exist_ok=True)
    while not device.is_locked:
        try:
            device.acquire(timeout=0.5)
        except Timeout:
            progress(0, 0, f"waiting for {_who(device)}")
    with suppress(OSError, SwmError):  # only a name for people to read
        replace_file(_holder(device), job.encode())


def release(device: FileLock) -> None:
    """Give the device back, if it was acquired."""
    if device.is_locked:
        _holder(device).unlink(missing_ok=True)
    device.release()


def _holder(device: FileLock) -> Path:
    """The file beside a device's lock that names the job that holds it."""
    return Path(f"{device.lock_file}.job")


def _who(device: FileLock) -> str:
    try:
        return _holder(device).read_text(encoding="utf-8")[:200] or "another job on this machine"
    except OSError:
        return "another job on this machine"
