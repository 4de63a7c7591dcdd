"""Free memory of this machine or its container, and whether the kernel killed processes for lack of it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from swm.errors import ModelError

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # what cgroup v1 reports if there is no limit


def this_machine() -> str:
    """A name for this machine until it is restarted, the same in all its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return platform.node()


def free_memory_bytes() -> int:
    """Memory available to this process: of the machine, or of the container if that has less.

    Raises:
        ModelError: if SWM_MEMORY, the most GiB that a process may use, is not a number.
    """
    return max(0, min([psutil.virtual_memory().available, *_left_in_cgroups(), *_left_of_own()]))


def _left_of_own() -> list[int]:
    limit = os.environ.get("SWM_MEMORY", "")
    if not limit:
        return []
    try:
        return [int(float(limit) * 2**30) - psutil.Process().memory_info().rss]
    except ValueError:
        raise ModelError(f"SWM_MEMORY must be a number of GiB (got '{limit[:40]}'). Correct or unset it.") from None


def check_memory(what: str, needed_bytes: int) -> None:
    """Raise ModelError if something to be loaded would not fit into free memory and swap."""
    free = free_memory_bytes() + (0 if os.environ.get("SWM_MEMORY") else psutil.swap_memory().free)
    if needed_bytes > free:
        raise ModelError(
            f"{what} needs {needed_bytes / 2**30:,.1f} GiB of memory, but {free / 2**30:,.1f} GiB are free. Close "
            "other programs, choose --dtype bfloat16, a smaller model, or a machine with more memory."
        )


def memory_kills() -> int:
    """How many processes the kernel has killed for lack of memory since boot; 0 if it does not report that.

    Source: `oom_kill` of /proc/vmstat, which counts the kills inside memory cgroups too.
    """
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, StopIteration, ValueError):
        return 0


def _left_in_cgroups() -> list[int]:
    """Bytes left under each memory limit of this process, counting file cache as free."""
    left = []
    for folder in _memory_cgroups():
        limit, used, cache = (
            ("memory.max", "memory.current", "inactive_file")
            if (folder / "memory.max").exists()
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        try:
            limit_bytes = (folder / limit).read_text().strip()
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            if limit_bytes != "max" and int(limit_bytes) < UNLIMITED:
                left.append(int(limit_bytes) - int((folder / used).read_text()) + int(stat.get(cache, 0)))
        except (OSError, ValueError):
            continue
    return left


def _memory_cgroups() -> list[Path]:
    """The memory cgroup of this process and its parents, version 2 or 1."""
    try:
        rows = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    cgroups = []
    for _, controllers, name in rows:
        if controllers in ("", "memory"):
            root = CGROUPS / controllers
            folder = root / name.lstrip("/")
            cgroups += [path for path in (folder, *folder.parents) if path == root or root in path.parents]
    return cgroups


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's MemoryError, torch.OutOfMemoryError (GPU), or torch's RuntimeError for the CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)
