"""A limit of memory that the kernel enforces, for a test's child processes (Linux control groups; needs root)."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")
LIMITS = {
    ROOT / "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),  # version 1
    ROOT: ("memory.max", "memory.swap.max"),
}


@contextmanager
def limited(limit):
    """Words before a command: it runs with so many bytes of memory, and is killed by the kernel if it takes more."""
    root = next(folder for folder in LIMITS if folder.is_dir())
    group = root / f"swm-test-{os.getpid()}"
    try:
        group.mkdir()
        limits = [group / name for name in LIMITS[root]]
        limits[0].write_text(str(limit))
        if limits[1].exists():
            limits[1].write_text("0" if limits[1].name == "memory.swap.max" else str(limit))
    except OSError as error:
        pytest.skip(f"no memory control group can be made here: {error}")
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "limited"]
    finally:
        group.rmdir()
