"""This machine's device: one job at a time uses it, and a job that waits names the one it waits for."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from swm.disk.files import home, replace_file
from swm.disk.machine import this_machine
from swm.errors import SwmError
from swm.progress import Progress


def device_lock() -> FileLock:
    """The lock of the device named by SWM_DEVICE, by default this machine's: others may share the home."""
    name = re.sub(r"[^A-Za-z0-9-]", "-", os.environ.get("SWM_DEVICE") or this_machine())[:100]
    return FileLock(home() / f".device-{name}.lock")


def acquire(device: FileLock, job: str, progress: Progress) -> None:
    """Wait for the device, and say who has it; `progress` may raise Cancelled.

    Args:
        job: what to call the job that gets it.
    """
    home().mkdir(parents=True, exist_ok=True)
    while not device.is_locked:
        try:
            device.acquire(timeout=0.5)
        except Timeout:
            progress(0, 0, f"waiting for {_who(device)}")
    with suppress(OSError, SwmError):  # only a name for people to read
        replace_file(_holder(device), job.encode())


def release(device: FileLock) -> None:
    """Give the device back, if it was acquired."""
    if device.is_locked:
        _holder(device).unlink(missing_ok=True)
    device.release()


def _holder(device: FileLock) -> Path:
    """The file beside a device's lock that names the job that holds it."""
    return Path(f"{device.lock_file}.job")


def _who(device: FileLock) -> str:
    try:
        return _holder(device).read_text(encoding="utf-8")[:200] or "another job on this machine"
    except OSError:
        return "another job on this machine"
