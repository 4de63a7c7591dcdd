"""A home that several machines use: whether locks taken on one of them hold on the others."""

from __future__ import annotations

import socket
import time
from functools import lru_cache
from pathlib import Path

import psutil

from swm.errors import JobError
from swm.workspace.files import disk_errors, home, replace_file
from swm.workspace.reading import state_in
from swm.workspace.state import HEARTBEAT_SECONDS

# File systems of one machine, which no other can mount at the same time.
OWN_DISK = (
    "apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfs", "jfs", "msdos", "ntfs",
    "ntfs3", "overlay", "ramfs", "reiserfs", "tmpfs", "ufs", "vfat", "xfs", "zfs",
)  # fmt: skip
# Those whose locks hold on all machines, and the mount options with which they do not.
SHARED_LOCKS = {
    "nfs": ("nolock", "local_lock=all", "local_lock=flock"),
    "nfs4": ("nolock", "local_lock=all", "local_lock=flock"),
    "lustre": ("localflock", "noflock"),
    "cifs": ("nobrl",),
    "smb3": ("nobrl",),
    "ceph": (),
    "fuse.ceph": (),
    "fuse.ceph-fuse": (),
    "fuse.glusterfs": (),
    "gfs2": ("localflocks",),
    "gpfs": (),
    "ocfs2": ("localflocks",),
}
BETTER = "NFS 4, SMB, Lustre mounted with flock, CephFS or GlusterFS"
USER_FILE = ".machine"  # in a home whose locks do not reach other machines: the name of the one that uses it
IN_USE_SECONDS = 900.0


def mount_of(path: Path) -> tuple[str, str]:
    """Type and options of the file system that holds a path, as the system names them; empty if it does not say."""
    place = path.resolve()
    holding = [part for part in psutil.disk_partitions(all=True) if place.is_relative_to(part.mountpoint)]
    found = max(holding, key=lambda part: len(part.mountpoint), default=None)
    return (found.fstype, found.opts) if found else ("", "")


def locks_reach_others(kind: str, options: str) -> bool:
    """Whether a lock on such a file system is seen by all machines that can use it.

    Args:
        kind: type of file system, such as "nfs4".
        options: mount options, separated by commas.
    """
    if not kind or kind.lower() in OWN_DISK:
        return True
    return kind in SHARED_LOCKS and not set(SHARED_LOCKS[kind]) & set(options.split(","))


@lru_cache(maxsize=64)
def _kind_without_shared_locks(folder: Path) -> str:
    kind, options = mount_of(folder)
    return "" if locks_reach_others(kind, options) else kind


def check_machine() -> None:
    """Keep a home whose locks do not reach other machines for one of them; called by each job every few seconds.

    Raises:
        JobError: if another machine used it within the last minutes.
    """
    if not (kind := _kind_without_shared_locks(home())):
        return
    file, host = home() / USER_FILE, socket.gethostname()
    with disk_errors(file, 4096):
        file.parent.mkdir(parents=True, exist_ok=True)
        user = file.read_text(encoding="utf-8") if file.exists() else ""
        if user in ("", host) or time.time() - file.stat().st_mtime > IN_USE_SECONDS:
            replace_file(file, host.encode())
            return
    raise JobError(
        f"SWM_HOME ({home()}) is on a file system ({kind}) where one machine does not see another's locks, and {user} "
        f"uses it: two machines would overwrite each other's results. Put it on {BETTER}, give this machine a SWM_HOME "
        f"of its own, or wait until {user} has not used it for {IN_USE_SECONDS / 60:.0f} minutes."
    )


def check_held(target_folder: Path) -> None:
    """Check a lock that was just taken: a job on another machine must not go on with the same target.

    That is seen by its heartbeats, whatever the file system says of itself. Takes a moment only where the state of a
    job on another machine was written within the last minute.

    Raises:
        JobError: if such a job is alive.
    """
    state = state_in(target_folder / "state.json")
    if not state.active or state.host in ("", socket.gethostname()) or not state.seen_from_here().active:
        return
    end = time.monotonic() + 2.5 * HEARTBEAT_SECONDS
    while time.monotonic() < end:
        time.sleep(HEARTBEAT_SECONDS / 6)
        if state_in(target_folder / "state.json").heartbeat != state.heartbeat:
            raise JobError(
                f"A job for this runs on {state.host}, and its lock is not seen here: SWM_HOME ({home()}) is on a file "
                f"system without locks between machines. Put it on {BETTER}, and cancel one of the jobs."
            )
