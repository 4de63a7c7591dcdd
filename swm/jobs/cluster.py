"""Jobs on a Ray cluster, sent by its job submission API, where SWM_EXECUTOR names one; otherwise they run here.

All nodes see the studio's folder and SWM_HOME at the same path. The folder of the experiment or run stays the
interface: the job writes its state there, and a request to stop it lies there.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swm.disk.files import APP_FOLDER
from swm.errors import JobError, SwmError
from swm.jobs.needs import check_room, needed_bytes
from swm.jobs.tracking import Target, log
from swm.workspace.people import child_environment, person, record
from swm.workspace.reading import state_in
from swm.workspace.state import State
from swm.workspace.tracked import CLUSTER_JOB, STOP_FILE

SETTING, CPUS = "SWM_EXECUTOR", "SWM_JOB_CPUS"
LOG, FOLDER = "SWM_JOB_LOG", "SWM_JOB_FOLDER"  # what a job writes its output to, and where it runs
POLL_SECONDS, PATIENCE_SECONDS = 2.0, 60.0
PENDING = "waits for the cluster"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
BEGUN = "The job begins."  # line before what a job says; what stands above it is the cluster's own


def cluster() -> str:
    """Address of the cluster that jobs are sent to; empty if they run here, as they do inside one of its jobs."""
    address = (os.environ[SETTING] if SETTING in os.environ else _in_secrets()).strip()
    return "" if address in ("", "local") or os.environ.get(CLUSTER_JOB) else address


def _in_secrets() -> str:
    """What the app's secrets file says, which Streamlit puts into the environment only for the app itself."""
    if sys.version_info < (3, 11):
        return ""
    import tomllib

    try:
        return str(tomllib.loads((APP_FOLDER / ".streamlit" / "secrets.toml").read_text("utf-8")).get(SETTING, ""))
    except (OSError, ValueError):  # there is none, or the app says what is wrong with it
        return ""


def submit(target: Target, stage: str, arguments: Sequence[str]) -> State:
    """Send a job that runs `python -m swm ARGUMENTS` for a target; returns its first state, written to its folder.

    Raises:
        JobError: if the cluster does not answer, or no node has the memory that the stage needs.
    """
    client, name = _client(cluster()), f"swm-{os.urandom(6).hex()}"
    stop = target.folder / STOP_FILE
    stop.unlink(missing_ok=True)
    log_file = target.folder / "job.log"
    log_file.unlink(missing_ok=True)
    now = time.time()
    first = State(stage, "queued", text=PENDING, started=now, heartbeat=now, command=tuple(arguments))
    first = replace(first, cluster_job=name, person=person().name)
    target.write_state(first)  # before the job can write its own
    try:
        _send(client, name, target, _with_executor(arguments), {LOG: str(log_file)})
    except SwmError as error:
        target.write_state(replace(first, status="failed", error=str(error)))
        record(stage, target.full_name, "failed", arguments)
        raise
    _start_watching(client, target, first)
    return first


def watch_again(targets: Callable[[], Iterable[Target]]) -> None:
    """Watch the jobs that wait on the cluster since before this process began, as after a restart of the app.

    Returns at once: a cluster that does not answer is asked again and again.
    """
    if cluster():
        threading.Thread(target=_watch_waiting, args=(targets,), daemon=True).start()


def _watch_waiting(targets: Callable[[], Iterable[Target]]) -> None:
    while True:
        try:
            sent = [(target, state) for target in targets() if (state := target.state()).cluster_job]
            waiting = [one for one in sent if not one[1].pid and one[1].status in ("queued", "interrupted")]
            client = _client(cluster()) if waiting else None
        except SwmError as error:
            log.info("%s", error)
            time.sleep(PATIENCE_SECONDS)
            continue
        for target, state in waiting:
            _start_watching(client, target, replace(state, status="queued", text=PENDING, error=""))
        return


def _start_watching(client: Any, target: Target, first: State) -> None:
    threading.Thread(target=_watch, args=(client, target, first), daemon=True).start()


def run_there(arguments: Sequence[str]) -> Iterator[str]:
    """Run a command on the cluster; what it says, piece by piece. A job that is not read to its end is stopped.

    Raises:
        JobError: if the cluster does not answer, or the command fails; without a message if it said why itself.
    """
    client, name = _client(cluster()), f"swm-{os.urandom(6).hex()}"
    _send(client, name, None, _with_executor(arguments), {})
    said, status = "", ""
    try:
        while status not in ENDED:
            time.sleep(POLL_SECONDS / 2)
            status = str(client.get_job_status(name).value)
            before, said = said, client.get_job_logs(name).partition(f"{BEGUN}\n")[2]
            yield said[len(before) :]
    finally:
        if status not in ENDED:
            client.stop_job(name)
    if status != "SUCCEEDED":
        raise JobError("" if said.strip() else f"The job ended: {client.get_job_info(name).message}")


def stop(target: Target, state: State) -> None:
    """Ask a job on the cluster to stop: at its next progress report, or before it begins."""
    (target.folder / STOP_FILE).write_text(state.cluster_job, encoding="utf-8")
    if state.status == "queued" and not state.pid:
        _client(cluster() or os.environ.get(SETTING, "")).stop_job(state.cluster_job)
        target.write_state(replace(state, status="cancelled"))
        record(state.stage, target.full_name, "cancelled", state.command)


def _client(address: str) -> Any:
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise JobError(
            f"{SETTING} names a Ray cluster, but Ray's job client is not installed. Run: pip install 'ray[default]', "
            f"or set {SETTING}=local."
        ) from None
    try:
        return JobSubmissionClient(address)
    except Exception as error:  # of many kinds: refused, unknown host, not a cluster, another version
        raise JobError(
            f"The Ray cluster {address} does not answer: {' '.join(str(error).split())[:200]} Check {SETTING}: it is "
            "the address of the cluster's dashboard, such as http://head:8265, or ray://head:10001."
        ) from None


def _send(client: Any, name: str, target: Target | None, arguments: Sequence[str], more: dict[str, str]) -> None:
    gpus, most = _nodes(client)
    memory = needed_bytes(target, arguments, most)
    check_room(memory, most)
    mine = {key: value for key, value in child_environment().items() if key.startswith(("SWM_", "HF_")) and value}
    mine |= {CLUSTER_JOB: name, "SWM_DEVICE": name, "PYTHONPATH": str(APP_FOLDER), "PYTHONUNBUFFERED": "1"}
    mine |= {FOLDER: str(Path.cwd() if not more else APP_FOLDER), **more}
    mine.pop(SETTING, None)
    only_starts = arguments[:1] == ["sweep"]  # its runs are tasks, which ask for what they need
    try:
        client.submit_job(
            entrypoint=shlex.join([sys.executable, "-m", "swm.jobs.on_node", sys.executable, "-m", "swm", *arguments]),
            submission_id=name,
            runtime_env={"env_vars": mine},
            entrypoint_num_cpus=0 if only_starts else float(os.environ.get(CPUS, "1")),
            entrypoint_num_gpus=1 if gpus and not only_starts else 0,
            entrypoint_memory=memory or None,
        )
    except Exception as error:  # Ray passes on whatever its server says as RuntimeError, ConnectionError and others
        reason = " ".join(str(error).split())[:300]
        raise JobError(f"The Ray cluster refuses the job: {reason} Check {SETTING} and {CPUS}.") from None


def _with_executor(arguments: Sequence[str]) -> list[str]:
    """A sweep's runs go to the same cluster."""
    there = ["--executor", "ray", "--address", "auto"] if arguments[:1] == ["sweep"] else []
    return [*arguments, *(there if "--executor" not in arguments else [])]


def _nodes(client: Any) -> tuple[float, float]:
    """GPUs of the cluster, and the memory of its largest node in bytes; zeros if that cannot be asked."""
    from ray.util.state import list_nodes

    try:
        nodes = [node.resources_total for node in list_nodes(address=client.get_address()) if node.state == "ALIVE"]
    except Exception as error:  # an older Ray, or no state API: the job is sent without these checks
        log.info("The cluster does not tell its resources: %s", error)
        return 0.0, 0.0
    return sum(node.get("GPU", 0.0) for node in nodes), max((node.get("memory", 0.0) for node in nodes), default=0.0)


def _watch(client: Any, target: Target, first: State) -> None:
    """Keep the state of a job true while it waits, and once it has ended without saying so."""
    last_answer = time.monotonic()
    while time.monotonic() - last_answer < PATIENCE_SECONDS:
        time.sleep(POLL_SECONDS)
        try:
            info = client.get_job_info(first.cluster_job)
            last_answer = time.monotonic()
        except Exception as error:  # the head restarts, or is lost: its jobs end with it
            log.info("The cluster does not answer: %s", error)
            continue
        try:
            state = target.state()
            if state.cluster_job != first.cluster_job or not (state.active or state.status == "interrupted"):
                return
            status = str(info.status.value)
            if status == "PENDING" and not state.pid:
                stopped = target.asked_to_stop(first.cluster_job)  # and this thread may have written over the end
                target.write_state(replace(first, heartbeat=time.time(), status="cancelled" if stopped else "queued"))
            elif state.pid and state_in(target.folder / "state.json").status == "interrupted":  # its node said so
                record(state.stage, target.full_name, "interrupted", state.command, first.person)
                return
            elif status in ENDED:
                _write_end(target, replace(state, heartbeat=time.time()), status, str(info.message or ""), first.person)
                return
        except SwmError as error:
            log.warning("%s", error)


def _write_end(target: Target, state: State, status: str, message: str, who: str) -> None:
    """The state of a job that ended without a final state of its own."""
    reason = " ".join(message.split())[:300]
    said = target.log_tail(1)
    if status == "SUCCEEDED":
        ended = replace(state, status="done", text="")
    elif status == "STOPPED":
        ended = replace(state, status="cancelled")
    elif not state.pid:
        ended = replace(state, status="failed", error=f"The job could not start: {said or reason}")
    else:
        ended = replace(
            state,
            status="interrupted",
            error=f"The cluster lost the job: {reason} Start it again: finished work is kept.",
        )
    target.write_state(ended)
    record(state.stage, target.full_name, ended.status, state.command, who)
