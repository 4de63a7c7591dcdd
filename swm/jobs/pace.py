"""How long a step of a stage will still take, by its own pace."""

from __future__ import annotations

from collections import deque

from swm.progress import UNLIKE

SURE_SECONDS, SURE_SHARE = 10.0, 0.05  # before that, a step foretells nothing
UNTOLD = (*range(5), UNLIKE)  # totals of steps with parts of several kinds, as loading, merging and saving


class Pace:
    """The time left of the step that runs: a row of progress reports with one total and a growing count.

    The pace is that of the later half of its time, so that it follows a machine whose load changes.
    """

    def __init__(self) -> None:
        self._total = self._first = 0
        self._began = 0.0
        self._reports: deque[tuple[float, int]] = deque([(0.0, 0)])  # of the later half: time and count, both growing

    def report(self, done: int, total: int, now: float) -> None:
        """Note progress at the time `now`, in seconds; another total or a smaller count begins another step."""
        reports = self._reports
        if total != self._total or done < reports[-1][1]:
            self._total, self._first, self._began = total, done, now
            self._reports = reports = deque([(now, done)])  # never empty: the heartbeat reads it in its own thread
        if done > reports[-1][1]:
            reports.append((now, done))
        middle = (self._began + now) / 2
        while len(reports) > 2 and reports[1][0] <= middle:
            reports.popleft()

    def seconds_left(self, now: float) -> float:
        """Seconds until the step ends, if it goes on as it did; 0 if that cannot be foretold yet."""
        reports = self._reports
        (start, before), (reported, done) = reports[0], reports[-1]
        whole, took = self._total - self._first, reported - self._began
        if self._total in UNTOLD or took < SURE_SECONDS or not whole > done - self._first >= SURE_SHARE * whole:
            return 0.0
        if before >= done:
            return 0.0
        return max(1.0, (reported - start) * (self._total - done) / (done - before) - (now - reported))
