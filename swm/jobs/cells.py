"""Running one cell of a sweep: a command in a child process, started again when it was killed."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from swm.jobs.end_with_parent import wrapped
from swm.jobs.sweep_file import SweepFile
from swm.progress import Progress
from swm.workspace.files import APP_FOLDER, child_environment, home

log = logging.getLogger(__name__)


POLL_SECONDS = 0.5


def run_cell(
    command: Sequence[str],
    experiment: str,
    run: str,
    retries: int,
    environment: dict[str, str],
    stop: threading.Event | None = None,
) -> str:
    """Run a cell's command until it ends of itself; one that was killed is started again, so many times.

    Its output goes to the run's job.log. Ends with this process, by a signal that lets it end in good order.

    Returns:
        What it said if it ended badly, else nothing.
    """
    folder = home() / "experiments" / experiment / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    told = {**child_environment(), "PYTHONUNBUFFERED": "1", "SWM_WAIT": "1", **environment}
    for attempt in range(retries + 1):
        with (folder / "job.log").open("ab") as output:
            child = subprocess.Popen(
                wrapped(swm_command(command)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=APP_FOLDER,
                env=told,
            )
        while child.poll() is None:
            if stop is not None and stop.is_set():
                child.send_signal(signal.SIGTERM)
                child.wait()
                return ""
            time.sleep(POLL_SECONDS)
        if child.returncode >= 0:  # done, or a message that another try would give again
            break
        log.warning("%s/%s was killed by signal %d, try %d", experiment, run, -child.returncode, attempt + 1)
    if child.returncode == 0:
        return ""
    lines = (folder / "job.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines and child.returncode > 0 else f"It was killed by signal {-child.returncode} each time."


def swm_command(command: Sequence[str]) -> list[str]:
    """`python -m swm ...` as an argument list."""
    return [sys.executable, "-m", "swm", *command]


def report_progress(file: SweepFile, left: int, progress: Progress) -> None:
    """Report how many of the sweep's runs are left."""
    progress(len(file.cells) - left, len(file.cells), f"{left} of {len(file.cells)} runs left")
