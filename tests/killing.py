"""Runs a command in a process that is killed at a chosen moment: `python -m tests.killing FILE N ARGUMENTS`.

The process ends itself with SIGKILL just before its N-th change of the disk under SWM_HOME (opening for writing,
renaming, removing, making a folder), so that every point between two changes can be met. It counts them in the file.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
ROOT = Path(__file__).parents[1]


def run(log, *arguments, at_change=0, after_seconds=None):
    """Run `swm ARGUMENTS`; gives {"signal", "code", "changes", "seconds"}. What it says is added to the file `log`."""
    counter, start = log.with_name("changes"), time.monotonic()
    counter.write_text("0")
    command = [sys.executable, "-m", "tests.killing", counter, at_change, *arguments]
    with log.open("ab") as said:
        process = subprocess.Popen(
            [str(word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
        )
    try:
        process.wait(after_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    code, seconds = process.wait(), time.monotonic() - start
    return {"signal": max(-code, 0), "code": code, "changes": int(counter.read_text()), "seconds": seconds}


def watch_changes(home, at_change, told):
    """Count changes of the disk under `home` into the file `told`; end this process before one of them."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event not in CHANGES or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if not os.path.abspath(os.fspath(arguments[0])).startswith(home):
            return
        count += 1
        if count == at_change:
            os.kill(os.getpid(), signal.SIGKILL)
        os.pwrite(told, f"{count:8d}".encode(), 0)

    sys.addaudithook(hook)


if __name__ == "__main__":
    import torch

    from swm.cli.main import main

    torch.set_num_threads(1)
    told, at_change, *arguments = sys.argv[1:]
    watch_changes(os.environ["SWM_HOME"], int(at_change), os.open(told, os.O_WRONLY))
    main(arguments)
