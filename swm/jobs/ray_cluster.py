"""Runs the cells of a sweep as tasks on a Ray cluster."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from swm.disk.files import home
from swm.errors import Cancelled, JobError, SettingsError
from swm.jobs.cells import POLL_SECONDS, report_progress, run_cell
from swm.jobs.cluster import FOLDER, LOG, SETTING
from swm.jobs.needs import needed_bytes
from swm.jobs.sweep_file import Cell, SweepFile
from swm.progress import Progress
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run


def run_on_ray(file: SweepFile, left: list[Cell], progress: Progress, address: str, failed: dict[str, str]) -> None:
    """Run one task per cell. Ray restarts tasks of lost nodes; they continue from the results in SWM_HOME.

    SWM_HOME must be a folder that all nodes see under the same path.
    """
    try:
        import ray
    except ImportError:
        raise SettingsError("Ray is not installed. Run: pip install ray, or omit --executor.") from None
    started_here = not ray.is_initialized()
    if started_here:
        try:
            ray.init(address=address or None, include_dashboard=False, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise JobError(f"The Ray cluster {address} does not answer: {str(error)[:200]}. Check --address.") from None
    try:
        environment = {"SWM_HOME": str(home()), "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "")}
        environment[SETTING] = "local"  # a run is not sent on, whatever the secrets file says
        largest = max(node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"])
        refs = {}
        for cell in left:
            memory = needed_bytes(Experiment.open(cell.experiment), cell.run_command)
            memory = min(memory, largest or memory)  # an estimate must not make a run wait for ever
            placed = {"num_cpus": file.cpus, "num_gpus": file.gpus, "memory": memory}
            task = ray.remote(_ray_cell).options(max_retries=file.retries, **placed)
            refs[task.remote(cell.run_command, cell.experiment, cell.run, file.retries, environment)] = cell
        while refs:
            report_progress(file, len(refs), progress)
            ended, _ = ray.wait(list(refs), num_returns=1, timeout=POLL_SECONDS)
            for ref in ended:
                if reason := _reason(ref):
                    failed[refs[ref].name] = reason
                del refs[ref]
    except Cancelled:
        for ref in refs:
            ray.cancel(ref, force=True)
        raise
    finally:
        if started_here:
            ray.shutdown()


def _reason(ref: Any) -> str:
    """Why a finished task failed; empty if it succeeded."""
    import ray

    try:
        return str(ray.get(ref))
    except ray.exceptions.RayError as error:
        return " ".join(str(error).split())[:200]


def _ray_cell(command: list[str], experiment: str, run: str, retries: int, environment: dict[str, str]) -> str:
    """Run a cell on a node of the cluster; returns as `run_cell`."""
    os.environ.update({name: value for name, value in environment.items() if value})
    for name in (LOG, FOLDER):  # of the job that sends the runs, which Ray hands on
        os.environ.pop(name, None)
    target = Run(Experiment.open(experiment), run)
    while target.state().active:  # the first attempt on a lost node still counts as active for a while
        time.sleep(POLL_SECONDS)
    device = {"SWM_DEVICE": f"{socket.gethostname()}-ray-{os.getpid()}"}
    return run_cell(command, experiment, run, retries, device)
