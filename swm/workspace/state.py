"""State of a stage: what its job writes and everybody reads. Whether the job still lives is seen from its process."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, replace
from typing import Any

import psutil

from swm.checked import Many
from swm.workspace.machine import memory_kills

HEARTBEAT_SECONDS = 3.0
STALE_SECONDS = 60.0
ACTIVE = ("queued", "running")


@dataclass(frozen=True)
class State:
    """Where a stage stands; written by the job, read by everybody.

    Times are seconds since the epoch. `pid` and `process_started` name the process on `host`. `memory_kills` is what
    `machine.memory_kills` said when the stage began; -1 if it was not asked.
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

    @property
    def active(self) -> bool:
        """Whether a job is queued or running."""
        return self.status in ACTIVE

    @property
    def seconds(self) -> float:
        """Seconds from the start to the last heartbeat."""
        return max(0.0, self.heartbeat - self.started)

    def seen_from_here(self) -> State:
        """The same state, `interrupted` if its process has ended without saying so."""
        if self.active and not self._process_lives():
            return replace(self, status="interrupted", error=self.why_ended())
        return self

    def why_ended(self) -> str:
        """Why its process ended without a word, as far as that can be known."""
        if self.host != socket.gethostname() or not 0 <= self.memory_kills < memory_kills():
            return "The process ended before the stage did. Start it again: what was finished is kept."
        used = f", of which it had {self.memory_bytes / 2**30:,.1f} GiB" if self.memory_bytes else ""
        return (
            f"The process was ended while this machine ran out of memory{used}. Close other programs, choose --dtype "
            "bfloat16, a smaller batch or shorter texts, and start it again: what was finished is kept."
        )

    def _process_lives(self) -> bool:
        if self.host != socket.gethostname():
            return time.time() - self.heartbeat < STALE_SECONDS
        try:
            process = psutil.Process(self.pid)
            # A finished child that nobody has waited for still has a pid; a reused pid has another start time.
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.process_started) < 2
        except psutil.Error:
            return False


def this_process(process: psutil.Process | None = None) -> dict[str, Any]:
    """The fields of State that name a process as it begins a stage; the one that calls if no other is given."""
    process = process or psutil.Process()
    return {
        "pid": process.pid,
        "process_started": process.create_time(),
        "host": socket.gethostname(),
        "memory_kills": memory_kills(),
    }
