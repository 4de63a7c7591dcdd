"""Running one cell of a sweep: a command in a child process, restarted if it is killed."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from swm.disk.files import APP_FOLDER, home
from swm.jobs.end_with_parent import wrapped
from swm.jobs.sweep_file import SweepFile
from swm.progress import Progress
from swm.workspace.people import child_environment

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
    """Run a cell's command to its end; if it is killed, restart it up to `retries` times.

    Its output goes to the run's job.log. When this process ends, the command gets a signal to shut down cleanly.

    Returns:
        The command's last line if it failed, otherwise an empty string.
    """
    folder = home() / "experiments" / experiment / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    full_environment = {**child_environment(), "PYTHONUNBUFFERED": "1", "SWM_WAIT": "1", **environment}
    for attempt in range(retries + 1):
        with (folder / "job.log").open("ab") as output:
            child = subprocess.Popen(
                wrapped(swm_command(command)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=APP_FOLDER,
                env=full_environment,
            )
        while _runs(child):
            if stop is not None and stop.is_set():
                child.send_signal(signal.SIGTERM)
                child.wait()
                return ""
        if child.returncode >= 0:  # done, or an error that would only repeat
            break
        log.warning("%s/%s was killed by signal %d, try %d", experiment, run, -child.returncode, attempt + 1)
    if child.returncode == 0:
        return ""
    lines = (folder / "job.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines and child.returncode > 0 else f"Killed by signal {-child.returncode} on every attempt."


def _runs(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def swm_command(command: Sequence[str]) -> list[str]:
    """`python -m swm ...` as an argument list."""
    return [sys.executable, "-m", "swm", *command]


def report_progress(file: SweepFile, left: int, progress: Progress) -> None:
    """Report how many of the sweep's runs are left."""
    progress(len(file.cells) - left, len(file.cells), f"{left} of {len(file.cells)} runs left")
