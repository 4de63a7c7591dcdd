"""Running a sweep: its cells as child processes, on this machine or on a Ray cluster."""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from swm.errors import Cancelled, ExperimentError, JobError, SettingsError
from swm.experiments import Experiment, Run
from swm.files import child_environment, demo_experiment, home, write_json
from swm.sweep import FAILED, Cell, Progress, Sweep, SweepFile

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
ROOT = Path(__file__).parents[1]
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def run_sweep(
    sweep: Sweep, progress: Progress, executor: str = "local", workers: int = 0, address: str = ""
) -> dict[str, str]:
    """Run what is not done yet.

    Args:
        executor: "local": a queue, one process for each GPU or one in all; "ray": one task for each cell on a cluster.
        workers: processes at once for "local"; 0 chooses.
        address: of a Ray cluster; empty starts one on this machine.

    Returns:
        State of each cell, by "experiment/run".

    Raises:
        Cancelled: when the user stopped it; running cells end in good order and go on the next time.
    """
    if demo_experiment():
        raise JobError("This is a demo: it is read-only.")
    file = sweep.file
    for cell in {cell.experiment: cell for cell in file.cells}.values():
        _create(cell, progress)
    left = [cell for cell in file.cells if cell.state() != "done"]
    progress(len(file.cells) - len(left), len(file.cells), "starting")
    failed: dict[str, str] = {}
    try:
        if executor == "ray":
            _on_ray(file, left, progress, address, failed)
        else:
            _locally(file, left, progress, workers, failed)
    finally:
        write_json(sweep.folder / FAILED, {"failed": failed})
    return sweep.states()


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
                _python(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=told,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
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


def _create(cell: Cell, progress: Progress) -> None:
    """The cell's experiment, unless it is there with the same settings."""
    progress(0, 0, f"creating {cell.experiment}")
    try:
        Experiment.open(cell.experiment)
        return  # its name has the hash of its settings
    except ExperimentError:
        pass
    command = _python(cell.create_command)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=child_environment())
    if done.returncode:
        raise ExperimentError((done.stderr.strip().splitlines() or ["It could not be created."])[-1])


def _python(command: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "swm", *command]


def _gpus() -> list[str]:
    """This machine's GPUs as CUDA_VISIBLE_DEVICES names them, those that we were given; asked in another process, so
    that this one stays small."""
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return given.split(",")
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    return [str(n) for n in range(int(done.stdout))] if done.returncode == 0 and done.stdout.strip().isdigit() else []


def _locally(file: SweepFile, left: list[Cell], progress: Progress, workers: int, failed: dict[str, str]) -> None:
    waiting: queue.Queue[Cell] = queue.Queue()
    for cell in left:
        waiting.put(cell)
    stop, ended = threading.Event(), []
    gpus = _gpus() if file.gpus else []
    workers = min(workers or len(gpus) or 1, len(left))

    def work(slot: int) -> None:
        several = {"SWM_DEVICE": f"{socket.gethostname()}-{slot}"} if workers > 1 else {}
        visible = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        while not stop.is_set():
            try:
                cell = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                if reason := run_cell(
                    cell.run_command, cell.experiment, cell.run, file.retries, several | visible, stop
                ):
                    failed[cell.name] = reason
            except OSError as error:  # a full disk: the other runs would meet it too
                failed[cell.name] = f"It could not start: {error}"
            ended.append(cell)

    threads = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            _tell(file, len(left) - len(ended), progress)
            time.sleep(POLL_SECONDS)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _tell(file: SweepFile, left: int, progress: Progress) -> None:
    progress(len(file.cells) - left, len(file.cells), f"{left} of {len(file.cells)} runs left")


def _end_with_parent() -> None:
    """Runs in the child: SIGTERM when the process that started it ends, however that ends (PR_SET_PDEATHSIG)."""
    assert LIBC is not None
    LIBC.prctl(1, signal.SIGTERM)


def _on_ray(file: SweepFile, left: list[Cell], progress: Progress, address: str, failed: dict[str, str]) -> None:
    """One task for each cell. Ray starts a task again whose node was lost; what it had done lies in SWM_HOME.

    SWM_HOME has to be a folder that every node sees by the same path.
    """
    try:
        import ray
    except ImportError:
        raise SettingsError("Ray is not installed. Run: pip install ray. Or leave --executor out.") from None
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address or None, include_dashboard=False, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise JobError(f"The Ray cluster {address} does not answer: {str(error)[:200]}. Check --address.") from None
    try:
        told = {"SWM_HOME": str(home()), "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "")}
        task = ray.remote(_ray_cell).options(num_cpus=file.cpus, num_gpus=file.gpus, max_retries=file.retries)
        refs = {task.remote(c.run_command, c.experiment, c.run, file.retries, told): c for c in left}
        while refs:
            _tell(file, len(refs), progress)
            ended, _ = ray.wait(list(refs), num_returns=1, timeout=POLL_SECONDS)
            for ref in ended:
                cell = refs.pop(ref)
                try:
                    if reason := ray.get(ref):
                        failed[cell.name] = reason
                except ray.exceptions.RayError as error:
                    failed[cell.name] = " ".join(str(error).split())[:200]
    except Cancelled:
        for ref in refs:
            ray.cancel(ref, force=True)
        raise
    finally:
        if ours:
            ray.shutdown()


def _ray_cell(command: list[str], experiment: str, run: str, retries: int, environment: dict[str, str]) -> str:
    """Runs on a node of the cluster."""
    os.environ.update({name: value for name, value in environment.items() if value})
    before = Run(Experiment.open(experiment), run)
    while before.state().active:  # the first try's process, on a node that was lost, has yet to notice
        time.sleep(POLL_SECONDS)
    several = {"SWM_DEVICE": f"{socket.gethostname()}-ray-{os.getpid()}"}
    return run_cell(command, experiment, run, retries, several)
