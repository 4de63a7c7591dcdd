"""What a search for one depth needs of the whole threshold path; it finds the same plans. Prints one JSON object.

Counted on paths that are there already, so it takes seconds: windows tried, and layers run for them (a window starts at
its first layer and runs to the top).

    python benchmarks/depth.py [PATH ...]     # path/<rule>.json of an experiment; by default those that ship
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from swm.search.find import threshold_path
from swm.search.kept_path import path_from
from swm.search.threshold_path import ThresholdPath


def main() -> None:
    shipped = [ROOT / f"assets/experiments/example-study/path/{rule}.json" for rule in ("rdsc", "replace")]
    files = [Path(name) for name in sys.argv[1:]] or shipped
    print(json.dumps({"benchmark": "depth", "paths": [depths_of(file) for file in files]}, indent=1))


def depths_of(file: Path) -> dict[str, Any]:
    known = path_from(json.loads(file.read_text()))
    if known.covered() < 0.999:
        sys.exit(f"{file} is not computed in whole. Run swm search first.")

    def searched(layers: int | None = None) -> ThresholdPath:
        score = known.similarities
        found = ThresholdPath(known.layer_count, known.rule, known.low, known.high, known.protect_last)
        return threshold_path(known.layer_count, lambda *key: score[key], known.low, path=found, layers=layers)

    whole = searched()
    depths = sorted({step.plan.layers_left for step in whole.intervals()}, reverse=True)
    return {
        "rule": known.rule,
        "from": known.low,
        "windows": len(whole.similarities),
        "plans": len({step.plan for step in whole.intervals()}),
        "depths": {depth: part_of(whole, searched(depth), depth) for depth in depths},
    }


def part_of(whole: ThresholdPath, part: ThresholdPath, depth: int) -> dict[str, Any]:
    ended, all_ended = ([s for s in one.intervals() if s.plan.layers_left == depth] for one in (part, whole))
    return {
        "windows": len(part.similarities),
        "share_of_layer_runs": round(layer_runs(part) / layer_runs(whole), 2),
        "same_plans": ended == all_ended,
    }


def layer_runs(path: ThresholdPath) -> int:
    return sum(path.layer_count - window.first for _, window in path.similarities)


if __name__ == "__main__":
    main()
