"""Runs a job on a node of a cluster, and writes down how it ended if it could not do that itself.

    python -m swm.jobs.on_node COMMAND...

A process that is killed says nothing, and only its own machine knows whether that was for lack of memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from swm.disk.files import write_json
from swm.disk.machine import memory_kills
from swm.jobs.cluster import BEGUN, LOG
from swm.jobs.end_with_parent import PR_SET_PDEATHSIG
from swm.workspace.reading import state_in
from swm.workspace.tracked import CLUSTER_JOB


def main() -> None:
    """Run the command, pass on the signals that this process gets, and exit as it did."""
    sys.stdout.write(f"{BEGUN}\n")
    sys.stdout.flush()
    kills, parent = memory_kills(), os.getppid()
    child = subprocess.Popen(sys.argv[1:], preexec_fn=_end_with_parent if sys.platform == "linux" else None)

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    code = None
    while code is None:
        with suppress(subprocess.TimeoutExpired):
            code = child.wait(1)
        if os.getppid() != parent:  # the node has left the cluster, which ends Ray's part of the job alone
            child.kill()
    if code < 0:
        memory = " Its machine ran out of memory." if memory_kills() > kills else ""
        sys.stderr.write(f"The job was ended by {signal.Signals(-code).name}.{memory}\n")
        _write_end()
    sys.exit(code if code >= 0 else 128 - code)


def _end_with_parent() -> None:
    """Have this process killed with its parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _write_end() -> None:
    """The end of the job in the state of its target, if it has not written one."""
    if log := os.environ.get(LOG):
        file = Path(log).parent / "state.json"
        state = state_in(file).seen_from_here()
        if state.cluster_job == os.environ.get(CLUSTER_JOB) and state.status == "interrupted":
            write_json(file, asdict(state))


if __name__ == "__main__":
    main()
