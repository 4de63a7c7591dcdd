"""Copy an experiment's results to assets/experiments, the examples that ship; without weights, logs and job states.

make demo                                    # on an otherwise idle machine
python -m swm search demo --from 0.5         # the rest of the path
python tools/ship.py demo
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

KEPT = (
    "experiment.json",
    "cost.json",
    "similarity/*.json",
    "path/*.json",
    "plans/*.json",
    "studies/*.json",
    "runs/*/run.json",
    "runs/*/events.jsonl",
)
RESULTS = (
    "scores.json",
    "scores-merged.json",
    "timing.json",
    "timing-merged.json",
    "documents.json",
    "documents-merged.json",
)


def main() -> None:
    from swm.workspace.names import EXAMPLE, SHIPPED, experiments_folder

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    options = parser.parse_args()
    source, target = (
        experiments_folder() / options.experiment,
        SHIPPED / f"{EXAMPLE}{options.experiment.removeprefix(EXAMPLE)}",
    )
    shutil.rmtree(target, ignore_errors=True)
    for pattern in (*KEPT, *(f"runs/*/{name}" for name in RESULTS)):
        for file in sorted(source.glob(pattern)):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
