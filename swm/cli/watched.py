"""A stage run from the command line, with its state on disk and its progress on stderr."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from swm.errors import printable
from swm.jobs.tracking import Target, beside, tracked
from swm.models.processes import is_first, together
from swm.progress import Progress
from swm.workspace.units import duration

LINE_SECONDS = 30.0  # between lines where there is no terminal


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A function that shows progress on stderr: a bar on a terminal, otherwise a line every half minute."""
    if not sys.stderr.isatty():
        with _lines(title) as progress:
            yield progress
        return
    shape = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}"
    with tqdm(desc=title, file=sys.stderr, bar_format=shape) as bar:

        def draw(done: int, total: int, text: str) -> None:
            bar.total, bar.n = total or None, done
            bar.set_postfix_str(printable(text))

        yield draw


@contextmanager
def _lines(title: str) -> Iterator[Progress]:
    """A function that takes progress reports; the last one is written every half minute, even if nothing changed."""
    start, ended, last = time.monotonic(), threading.Event(), ["starting"]

    def write() -> None:
        while not ended.wait(LINE_SECONDS):
            print(f"{title}: {last[0]}, {duration(time.monotonic() - start)}", file=sys.stderr, flush=True)

    def progress(done: int, total: int, text: str) -> None:
        last[0] = printable(f"{done / total:.0%}, {text}" if total else text)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        ended.set()
        thread.join()


@contextmanager
def watched(target: Target, stage: str, device: bool = True) -> Iterator[Progress]:
    """The progress function of a stage: writes to disk and, on a terminal, draws a bar.

    Args:
        device: whether the stage uses this machine's device.
    """
    if not is_first():  # the first of several processes writes the state and waits for the lock
        together()
        for number in (signal.SIGTERM, signal.SIGINT):  # the first one decides when to stop
            signal.signal(number, signal.SIG_IGN)
        with beside(target):
            yield lambda done, total, text: None
        return
    with tracked(target, stage, sys.argv[1:], device) as tracker, progress_bar(stage) as draw:
        together()

        def progress(done: int, total: int, text: str) -> None:
            tracker(done, total, text)
            draw(done, total, text)

        yield progress
