"""Losses of plans that planners tried, kept in tried.json, so that a search that stopped goes on where it was.

They serve every number of layers: a search for 20 layers starts with what one for 24 found.
"""

from __future__ import annotations

import math
import time
from typing import Any

from swm.errors import ExperimentError
from swm.progress import Progress
from swm.workspace.experiments import Experiment

FILE = "tried.json"
VERSION = 1  # raised when losses change: of rule fit as well
EVERY = 10.0  # seconds between writings
SAMPLED = "tokens of the vocabulary"  # in the kind of losses that are estimated from so many
RISE = "rise of"  # in the kind of what is no loss on the text, but a rise of abilities
Losses = dict[str, dict[frozenset[int], float]]


class TriedPlans:
    """The losses of sets of dropped layers, by kind; written now and then, and at the end.

    Attributes:
        losses: filled by the planner.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment, self._written = experiment, time.monotonic()
        try:
            data = experiment.read(FILE)
        except ExperimentError:  # damaged: everything in it can be computed again
            data = None
        valid = data and data["version"] == VERSION and data["text_hash"] == experiment.text_hash
        kept: dict[str, dict[str, float]] = data["losses"] if data and valid else {}
        self.losses: Losses = {
            kind: {frozenset(map(int, layers.split(","))): loss for layers, loss in found.items()}
            for kind, found in kept.items()
        }

    def saving(self, progress: Progress) -> Progress:
        """Progress that also saves what was tried so far."""

        def report(done: int, total: int, text: str) -> None:
            if time.monotonic() - self._written > EVERY:
                self.save()
            progress(done, total, text)

        return report

    def save(self) -> None:
        """Write tried.json; nothing if the experiment is read-only."""
        if self._experiment.read_only or not any(self.losses.values()):
            return
        found: dict[str, Any] = {
            kind: {_key(layers): loss for layers, loss in losses.items() if layers and math.isfinite(loss)}
            for kind, losses in self.losses.items()
        }
        data = {"version": VERSION, "text_hash": self._experiment.text_hash, "losses": found}
        self._experiment.write(FILE, data)
        self._written = time.monotonic()


def _key(layers: frozenset[int]) -> str:
    return ",".join(map(str, sorted(layers)))
