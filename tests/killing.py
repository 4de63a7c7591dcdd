"""Runs commands in children that are killed at a chosen moment. Started as a process of its own by `Killer`.

Everything heavy is imported once; each command then runs in a fork. A child ends itself with SIGKILL just before its
n-th change of the disk under SWM_HOME (opening for writing, renaming, removing, making a folder), so that every point
between two changes can be met; or it is killed after so many seconds, wherever it is.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from swm.cli.main import main

CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


class Killer:
    """The process that runs commands, seen from a test."""

    def __init__(self, log):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.killing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[1],
        )

    def run(self, *arguments, at_change=None, after_seconds=None):
        """Run `swm ARGUMENTS` in today's SWM_HOME; gives {"signal", "code", "changes", "seconds"}."""
        asked = {
            "home": os.environ["SWM_HOME"],
            "arguments": [str(a) for a in arguments],
            "at_change": at_change,
            "after_seconds": after_seconds,
        }
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        self._log.close()


def watch_changes(home, at_change, told):
    """Count changes of the disk under `home` into the pipe `told`; end this process before one of them."""
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


def child(asked, told):
    os.environ["SWM_HOME"] = asked["home"]

    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    watch_changes(asked["home"], asked["at_change"], told)
    code = 1
    try:
        main(asked["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def serve():
    for heavy in ("peft", "transformers", "lm_eval", "swm.stages.plan", "swm.stages.loading", "swm.studies.run"):
        importlib.import_module(heavy)
    counter = os.memfd_create("changes")
    for line in sys.stdin:
        asked = json.loads(line)
        os.ftruncate(counter, 0)
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(asked, counter)
        status = None
        if asked["after_seconds"] is not None:
            while time.monotonic() - start < asked["after_seconds"]:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    break
                status = None
                time.sleep(0.002)
            else:
                os.kill(pid, signal.SIGKILL)
        if status is None:
            status = os.waitpid(pid, 0)[1]
        answer = {
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1,
            "changes": int(os.pread(counter, 8, 0) or 0),
            "seconds": time.monotonic() - start,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
