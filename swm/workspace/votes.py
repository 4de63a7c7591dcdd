"""Votes between two models' answers that were shown without names, kept with the experiment; of examples, in home."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from swm.disk.files import demo_experiment, home
from swm.disk.names import is_shipped
from swm.errors import ExperimentError
from swm.workspace.experiments import Experiment
from swm.workspace.records import is_record

FILE = "votes.jsonl"
TIE = "tie"


@dataclass(frozen=True)
class Vote:
    """One vote: `winner` is one of the two models, or TIE."""

    prompt: str
    models: tuple[str, str]
    winner: str
    time: float = 0.0


@dataclass(frozen=True)
class Tally:
    """The votes between two models, by name: `share` of the first's wins among votes that were no ties.

    `low` and `high`: its 95 % interval (Wilson); None for all three without such votes.
    """

    models: tuple[str, str]
    wins: tuple[int, int]
    ties: int
    share: float | None
    low: float | None
    high: float | None


def add_vote(experiment: Experiment, prompt: str, models: tuple[str, str], winner: str) -> None:
    """Append a vote.

    Raises:
        ExperimentError: if the experiment takes no votes, or the winner is none of the models.
    """
    if not takes_votes(experiment):
        experiment.check_writable()
    if winner not in (*models, TIE):
        raise ExperimentError(f"{winner} is none of the models that were compared: {', '.join(models)}.")
    line = json.dumps(asdict(Vote(prompt, models, winner, time.time())))
    file = _file(experiment)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(line + "\n")  # one write, so that the lines of two pages do not mix


def takes_votes(experiment: Experiment) -> bool:
    """Whether who looks at it may vote: on what they may change, and on the shipped examples."""
    return not experiment.read_only or (is_shipped(experiment.folder) and not demo_experiment())


def _file(experiment: Experiment) -> Path:
    """Where an experiment's votes are; those on a shipped example are this home's own."""
    return home() / "votes" / f"{experiment.name}.jsonl" if is_shipped(experiment.folder) else experiment.folder / FILE


def votes(experiment: Experiment) -> list[Vote]:
    """All readable votes, oldest first; a damaged line is left out."""
    file = _file(experiment)
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            data = json.loads(line)
        except ValueError:
            continue
        if is_record(data, "vote"):
            found.append(Vote(data["prompt"], tuple(data["models"]), data["winner"], data["time"]))
    return found


def tallies(cast: list[Vote]) -> list[Tally]:
    """The votes of each pair of models, the pair with the most votes first."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for vote in cast:
        first, second = sorted(vote.models)
        pairs.setdefault((first, second), []).append(vote.winner)
    return [_tally(pair, winners) for pair, winners in sorted(pairs.items(), key=lambda one: (-len(one[1]), one[0]))]


def _tally(models: tuple[str, str], winners: list[str]) -> Tally:
    from scipy.stats import binomtest  # a second to import

    wins = winners.count(models[0]), winners.count(models[1])
    decided = sum(wins)
    if not decided:
        return Tally(models, wins, winners.count(TIE), None, None, None)
    interval = binomtest(wins[0], decided).proportion_ci(0.95, "wilson")
    return Tally(models, wins, winners.count(TIE), wins[0] / decided, float(interval.low), float(interval.high))
