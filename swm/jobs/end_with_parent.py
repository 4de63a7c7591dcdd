"""Runs a command that gets SIGTERM when the process that started it ends, however that ends (Linux).

    python -m swm.jobs.end_with_parent PID COMMAND...

Done here, in the child, since code between fork and exec is not safe where a process has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def wrapped(command: list[str]) -> list[str]:
    """The command, to be started by this process so that it ends with it; as it is where that is not possible."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-m", "swm.jobs.end_with_parent", str(os.getpid()), *command]


def main() -> None:
    """Become the command."""
    parent, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # kept when another program takes this one's place
    if os.getppid() != int(parent):  # it ended before that
        sys.exit(128 + signal.SIGTERM)
    os.execv(command[0], command)  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    main()
