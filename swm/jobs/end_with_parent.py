"""Runs a command that gets SIGTERM when its parent process ends, however that happens (Linux).

    python -m swm.jobs.end_with_parent PID COMMAND...

Done here, in the child, because running code between fork and exec is unsafe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def wrapped(command: list[str]) -> list[str]:
    """The command, wrapped so that it ends with this process, which must start it; unchanged if not on Linux."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-m", "swm.jobs.end_with_parent", str(os.getpid()), *command]


def main() -> None:
    """Replace this process with the command."""
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # survives the exec below
    if os.getppid() != int(parent):  # the parent ended before that
        sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    main()
