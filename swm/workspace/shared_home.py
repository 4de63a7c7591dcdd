"""A home that several machines use: whether locks taken on one of them hold on the others."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from swm.disk.files import disk_errors, home, replace_file
from swm.disk.machine import this_machine
from swm.errors import JobError
from swm.workspace.reading import state_in
from swm.workspace.state import HEARTBEAT_SECONDS

# File systems that several machines can use, but whose locks stay on one: always, or with one of these mount options.
OWN_LOCKS: dict[str, tuple[str, ...]] = {
    "nfs": ("nolock", "local_lock=all", "local_lock=flock"),
    "nfs4": ("nolock", "local_lock=all", "local_lock=flock"),
    "lustre": ("localflock", "noflock"),
    "cifs": ("nobrl",),
    "smb3": ("nobrl",),
    "9p": (),
    "virtiofs": (),
    "vboxsf": (),
    "prl_fs": (),
    "fakeowner": (),
    "davfs": (),
    "fuse.grpcfuse": (),
    "fuse.sshfs": (),
    "fuse.rclone": (),
    "fuse.s3fs": (),
    "fuse.goofys": (),
    "fuse.mountpoint-s3": (),
    "fuse.gcsfuse": (),
    "fuse.blobfuse": (),
    "fuse.blobfuse2": (),
    "fuse.davfs": (),
}
BETTER = "NFS 4, SMB, Lustre mounted with flock, CephFS or GlusterFS"
USER_FILE = ".machine"  # in a home whose locks do not reach other machines: which one uses it, and when it last did
IN_USE_SECONDS = 900.0


def mount_of(path: Path) -> tuple[str, str]:
    """Type and options of the file system that holds a path, as the system names them; empty if it does not say."""
    place = Path(os.path.realpath(path))
    holding = [part for part in psutil.disk_partitions(all=True) if place.is_relative_to(part.mountpoint)]
    found = max(reversed(holding), key=lambda part: len(part.mountpoint), default=None)  # the last of equals is seen
    return (found.fstype, found.opts) if found else ("", "")


def locks_reach_others(kind: str, options: str) -> bool:
    """Whether a lock on such a file system is seen by all machines that can use it; True if nothing else is known.

    Args:
        kind: type of file system, such as "nfs4".
        options: mount options, separated by commas.
    """
    if kind not in OWN_LOCKS:
        return True
    return bool(OWN_LOCKS[kind]) and not set(OWN_LOCKS[kind]) & set(options.split(","))


def check_machine() -> None:
    """Keep a home whose locks do not reach other machines for one of them; called by each job every few seconds.

    Raises:
        JobError: if another machine used it within the last minutes.
    """
    kind, options = mount_of(home())
    if locks_reach_others(kind, options):
        return
    file, now = home() / USER_FILE, time.time()
    machine, host, used = _user(file)
    if machine not in ("", this_machine()) and abs(now - used) < IN_USE_SECONDS:
        raise JobError(
            f"SWM_HOME ({home()}) is on a file system ({kind}) where one machine does not see another's locks, and "
            f"{host} uses it: two machines would overwrite each other's results. Put it on {BETTER}, give this "
            f"machine a SWM_HOME of its own, or wait until {host} has not used it for "
            f"{IN_USE_SECONDS / 60:.0f} minutes. If that was this machine before it was restarted, delete {file}."
        )
    with disk_errors(file, 4096):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, json.dumps({"machine": this_machine(), "host": socket.gethostname(), "time": now}).encode())


def _user(file: Path) -> tuple[str, str, float]:
    """Which machine uses the home, its host name, and when it last did; empty if the file is missing or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8", errors="replace"))
        return str(found["machine"]), str(found["host"]), float(found["time"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return "", "", 0.0


def check_held(target_folder: Path) -> None:
    """Check a lock that was just taken: a job on another machine must not go on with the same target.

    That is seen by its heartbeats, whatever the file system says of itself. Takes a moment only where the state of a
    job on another machine was written within the last minute.

    Raises:
        JobError: if such a job is alive.
    """
    file = target_folder / "state.json"
    state = state_in(file)
    if not state.active or state.host in ("", socket.gethostname()) or not state.seen_from_here().active:
        return
    end = time.monotonic() + 2.5 * HEARTBEAT_SECONDS
    while time.monotonic() < end:
        time.sleep(HEARTBEAT_SECONDS / 6)
        now = state_in(file)
        if not now.active or not now.is_same_job(state):
            return
        if now.heartbeat != state.heartbeat:
            raise JobError(
                f"A job for this runs on {state.host}, and its lock is not seen here: SWM_HOME ({home()}) is on a file "
                f"system without locks between machines. Put it on {BETTER}, and cancel one of the jobs."
            )


@contextmanager
def names_locked() -> Iterator[None]:
    """Hold the lock for creating and deleting experiments and runs; held for milliseconds."""
    check_machine()
    lock = FileLock(home() / ".names.lock")
    try:
        with disk_errors(home(), 4096):
            home().mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=10)
    except Timeout:
        raise JobError("Another program is creating or deleting experiments. Try again in a moment.") from None
    try:
        yield
    finally:
        lock.release()
