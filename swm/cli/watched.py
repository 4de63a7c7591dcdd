"""A stage run from the command line, with its state on disk and a progress bar on a terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from swm.errors import printable
from swm.jobs.tracking import Target, beside, tracked
from swm.models.processes import is_first, together
from swm.progress import Progress


def progress_bar(title: str) -> tuple[tqdm, Progress]:  # type: ignore[type-arg]
    """A bar on the terminal's stderr, and the function that moves it."""
    shape = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining} {postfix}"
    bar = tqdm(desc=title, disable=not sys.stderr.isatty(), file=sys.stderr, bar_format=shape)

    def progress(done: int, total: int, text: str) -> None:
        bar.total, bar.n = total or None, done
        bar.set_postfix_str(printable(text))

    return bar, progress


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
    bar, draw = progress_bar(stage)
    with tracked(target, stage, sys.argv[1:], device) as tracker, bar:
        together()

        def progress(done: int, total: int, text: str) -> None:
            tracker(done, total, text)
            draw(done, total, text)

        yield progress
