"""Peak memory of a block of code, beyond what was in use before."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from transformers import PreTrainedModel


@contextmanager
def peak_memory(model: PreTrainedModel) -> Iterator[list[int]]:
    """A list whose single entry holds, after the block, its peak memory in bytes beyond what was in use before."""
    peak = [0]
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(model.device) - before
        return
    _return_freed_memory()
    process, stop = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _return_freed_memory() -> None:
    """Return freed memory to the system, otherwise a second generation seems to need none. glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
