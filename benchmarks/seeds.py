"""Two methods healed with several seeds each: how far apart are they, over documents and over seeds?

The average score's difference, second minus first method: with each pair of seeds, and of the mean of all seeds with
its 95 % interval, from the spread over documents (each one's answers averaged over the seeds) and the spread of the
pairs' differences; some of the chance is in both, so the interval is rather too wide. Prints one JSON object.

    python benchmarks/seeds.py EXP RUN,RUN[,RUN ...] RUN,RUN[,RUN ...]      # the first method's runs, the second's
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from swm.experiments import Experiment
from swm.paired import AVERAGE, Paired, paired

Documents = dict[str, Any]


def main() -> None:
    experiment = Experiment.open(sys.argv[1])
    first, second = ([experiment.run(name).documents() for name in names.split(",")] for names in sys.argv[2:4])
    print(json.dumps({"benchmark": "seeds", **compared(first, second)}, indent=1))


def compared(first: list[Documents], second: list[Documents]) -> dict[str, Any]:
    """Points, not shares.

    Args:
        first, second: what `documents.json` says of each run of a method, two or more; run by run with the same seed.
    """
    each = [average_of(*pair).difference for pair in zip(first, second, strict=True)]
    tasks = paired(mean_of(first), mean_of(second))
    mean = tasks[-1]
    over_documents = (mean.high - mean.low) / 2 / 1.96
    over_seeds = statistics.stdev(each) / math.sqrt(len(each))
    reach = 1.96 * math.hypot(over_documents, over_seeds)
    return {
        "documents": mean.documents,
        "seeds": len(each),
        "difference_by_seed": [points(value) for value in each],
        "difference": points(mean.difference),
        "interval_over_documents": [points(mean.low), points(mean.high)],
        "interval": [points(mean.difference - reach), points(mean.difference + reach)],
        "by_task": {one.task: points(one.difference) for one in tasks[:-1]},
    }


def average_of(first: Documents, second: Documents) -> Paired:
    return next(one for one in reversed(paired(first, second)) if one.task == AVERAGE)


def mean_of(runs: list[Documents]) -> Documents:
    """One model that answers each document as often right as the runs do."""
    right: dict[str, dict[Any, list[float]]] = {}
    for run in runs:
        for task, rows in run["tasks"].items():
            for row in rows:
                right.setdefault(task, {}).setdefault(row["id"], []).append(row["correct"])
    return {
        "tasks": {
            task: [{"id": key, "correct": statistics.fmean(found)} for key, found in of.items()]
            for task, of in right.items()
        }
    }


def points(share: float) -> float:
    return round(100 * share, 1)


if __name__ == "__main__":
    main()
