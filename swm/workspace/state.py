"""The state of a stage: its job writes it, all others read it and check that the job's process is alive."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, replace
from typing import Any

import psutil

from swm.checked import Many
from swm.disk.machine import memory_kills

HEARTBEAT_SECONDS = 3.0
STALE_SECONDS = 60.0
ACTIVE = ("queued", "running")


@dataclass(frozen=True)
class State:
    """The progress of a stage; written by its job, read by all others.

    Times are seconds since the epoch. `pid` and `process_started` identify the process on `host`. `memory_kills` is the
    value of `machine.memory_kills` when the stage began; -1 if unknown. `cluster_job` is its name on a Ray cluster.
    `person` started it, where people log in. `seconds_left`: of the step that runs; 0 if it cannot be foretold.
    """

    stage: str = ""
    status: str = ""
    done: int = 0
    total: int = 0
    text: str = ""
    error: str = ""
    started: float = 0.0
    heartbeat: float = 0.0
    pid: int = 0
    process_started: float = 0.0
    host: str = ""
    memory_bytes: int = 0
    cpu_percent: float = 0.0
    gpu_memory_bytes: int = 0
    memory_kills: int = -1
    command: Many[str] = ()
    cluster_job: str = ""
    person: str = ""
    seconds_left: float = 0.0

    @property
    def active(self) -> bool:
        """Whether a job is queued or running."""
        return self.status in ACTIVE

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last heartbeat."""
        return max(0.0, self.heartbeat - self.started)

    def is_same_job(self, other: State) -> bool:
        """Whether both are of one process."""
        return (self.host, self.pid, self.process_started) == (other.host, other.pid, other.process_started)

    def seen_from_here(self) -> State:
        """The same state; `interrupted` if its process ended without writing a final state."""
        if self.active and not self._process_lives():
            return replace(self, status="interrupted", error=self.why_ended())
        return self

    def why_ended(self) -> str:
        """The probable reason why its process ended without writing a final state."""
        if self.host != socket.gethostname() or not 0 <= self.memory_kills < memory_kills():
            return "The process ended before the stage was finished. Start it again: finished work is kept."
        used = f" (it used {self.memory_bytes / 2**30:,.1f} GiB)" if self.memory_bytes else ""
        return (
            f"The process was killed while this machine ran out of memory{used}. Close other programs, choose --dtype "
            "bfloat16, a smaller batch or shorter texts, and start it again: finished work is kept."
        )

    def _process_lives(self) -> bool:
        if self.host != socket.gethostname():
            return time.time() - self.heartbeat < STALE_SECONDS
        try:
            process = psutil.Process(self.pid)
            # A zombie (a finished child not yet waited for) still has a pid; a reused pid has another start time.
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.process_started) < 2
        except psutil.Error:
            return False


def this_process(process: psutil.Process | None = None) -> dict[str, Any]:
    """The fields of State that identify a process at the start of a stage; by default the current process."""
    process = process or psutil.Process()
    return {
        "pid": process.pid,
        "process_started": process.create_time(),
        "host": socket.gethostname(),
        "memory_kills": memory_kills(),
    }
