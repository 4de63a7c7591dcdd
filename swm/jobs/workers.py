"""Runs the unfinished cells of a sweep, on this machine or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import queue
import socket
import subprocess
import sys
import threading

from swm.disk.files import APP_FOLDER, demo_experiment, write_json
from swm.errors import ExperimentError, JobError
from swm.jobs.cells import POLL_SECONDS, report_progress, run_cell, swm_command
from swm.jobs.ray_cluster import run_on_ray
from swm.jobs.sweep import FAILED, Sweep
from swm.jobs.sweep_file import Cell, SweepFile
from swm.progress import Progress
from swm.workspace.experiments import Experiment
from swm.workspace.people import child_environment

log = logging.getLogger(__name__)


def run_sweep(
    sweep: Sweep, progress: Progress, executor: str = "local", workers: int = 0, address: str = ""
) -> dict[str, str]:
    """Run all unfinished cells of a sweep.

    Args:
        executor: "local": a queue with one process per GPU, or one without GPUs; "ray": one task per cell on a cluster.
        workers: number of parallel processes for "local"; 0 chooses it automatically.
        address: of a Ray cluster; empty starts one on this machine.

    Returns:
        State of each cell, by "experiment/run".

    Raises:
        Cancelled: if the user stopped it; running cells shut down cleanly and resume the next time.
    """
    if demo_experiment():
        raise JobError("Cannot run a sweep: this is a read-only demo.")
    file = sweep.file
    for cell in {cell.experiment: cell for cell in file.cells}.values():
        _create(cell, progress)
    left = [cell for cell in file.cells if cell.state() != "done"]
    progress(len(file.cells) - len(left), len(file.cells), "starting")
    failed: dict[str, str] = {}
    try:
        if executor == "ray":
            run_on_ray(file, left, progress, address, failed)
        else:
            _locally(file, left, progress, workers, failed)
    finally:
        write_json(sweep.folder / FAILED, {"failed": failed})
    return sweep.states()


def _create(cell: Cell, progress: Progress) -> None:
    """Create the cell's experiment unless it exists."""
    progress(0, 0, f"creating {cell.experiment}")
    try:
        Experiment.open(cell.experiment)
        return  # its name contains a hash of its settings, so they are the same
    except ExperimentError:
        pass
    command = swm_command(cell.create_command)
    done = subprocess.run(command, capture_output=True, text=True, cwd=APP_FOLDER, env=child_environment())
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ExperimentError(lines[-1] if lines else f"Experiment {cell.experiment} could not be created.")


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; a child process loads torch to count
    them, so that this one stays small."""
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return given.split(",")
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=APP_FOLDER)
    return [str(n) for n in range(int(done.stdout))] if done.returncode == 0 and done.stdout.strip().isdigit() else []


def _locally(file: SweepFile, left: list[Cell], progress: Progress, workers: int, failed: dict[str, str]) -> None:
    waiting: queue.Queue[Cell] = queue.Queue()
    for cell in left:
        waiting.put(cell)
    stop, ended = threading.Event(), []
    gpus = _gpus() if file.gpus else []
    workers = min(workers or len(gpus) or 1, len(left))

    def work(slot: int) -> None:
        device = {"SWM_DEVICE": f"{socket.gethostname()}-{slot}"} if workers > 1 else {}
        visible = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        while not stop.is_set():
            try:
                cell = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                if reason := run_cell(
                    cell.run_command, cell.experiment, cell.run, file.retries, device | visible, stop
                ):
                    failed[cell.name] = reason
            except OSError as error:  # a full disk: the other runs would fail too
                failed[cell.name] = f"The run could not start: {error}"
            ended.append(cell)

    threads = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while running := [thread for thread in threads if thread.is_alive()]:
            report_progress(file, len(left) - len(ended), progress)
            running[0].join(POLL_SECONDS)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
