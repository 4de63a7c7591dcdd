"""What is left of memory on this machine or in its container, and whether the kernel ended processes for want of it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from swm.errors import ModelError

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # what cgroup v1 says where there is no limit


def free_memory_bytes() -> int:
    """Memory that can be taken without pushing others out: of the machine, or of the container when that has less.

    Raises:
        ModelError: if SWM_MEMORY, the GiB that a process may take at most, is no number.
    """
    return max(0, min([psutil.virtual_memory().available, *_left_in_cgroups(), *_left_of_own()]))


def _left_of_own() -> list[int]:
    limit = os.environ.get("SWM_MEMORY", "")
    if not limit:
        return []
    try:
        return [int(float(limit) * 2**30) - psutil.Process().memory_info().rss]
    except ValueError:
        raise ModelError(f"SWM_MEMORY is '{limit[:40]}', which is no number of GiB. Correct it or unset it.") from None


def check_memory(what: str, needed_bytes: int) -> None:
    """Raise ModelError before something is loaded that cannot fit, swap counted."""
    free = free_memory_bytes() + (0 if os.environ.get("SWM_MEMORY") else psutil.swap_memory().free)
    if needed_bytes > free:
        raise ModelError(
            f"{what} needs {needed_bytes / 2**30:,.1f} GiB of memory and {free / 2**30:,.1f} GiB are free. Close other "
            "programs, choose --dtype bfloat16, a smaller model, or a machine with more memory."
        )


def memory_kills() -> int:
    """How many processes the kernel has ended since it started because memory ran out; 0 where it does not say.

    Source: `oom_kill` of /proc/vmstat, which counts the kills inside memory cgroups too.
    """
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, StopIteration, ValueError):
        return 0


def _left_in_cgroups() -> list[int]:
    """For every memory limit that holds for this process: what is left of it, file cache counted as free."""
    left = []
    for folder in _memory_cgroups():
        limit, used, cache = (
            ("memory.max", "memory.current", "inactive_file")
            if (folder / "memory.max").exists()
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        try:
            most = (folder / limit).read_text().strip()
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            if most != "max" and int(most) < UNLIMITED:
                left.append(int(most) - int((folder / used).read_text()) + int(stat.get(cache, 0)))
        except (OSError, ValueError):
            continue
    return left


def _memory_cgroups() -> list[Path]:
    """The memory cgroup of this process and those around it, of version 2 or 1."""
    try:
        rows = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in rows:
        if controllers in ("", "memory"):
            root = CGROUPS / controllers
            folder = root / path.lstrip("/")
            found += [each for each in (folder, *folder.parents) if each == root or root in each.parents]
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own, a GPU's (torch.OutOfMemoryError), or torch's on the CPU, which is a plain RuntimeError."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)
