"""How much of the whole threshold path a search for one depth needs to find the same plans. Prints one JSON object.

Replays finished paths, so it takes seconds. Counts the windows tried and the layer runs they need (a window is run from
its first layer to the top).

    python benchmarks/depth.py [PATH ...]     # path/<rule>.json of an experiment; by default those that ship
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from swm.search.find import extended
from swm.search.kept_path import path_from
from swm.search.threshold_path import ThresholdPath


def main() -> None:
    shipped = [ROOT / f"assets/experiments/example-study/path/{rule}.json" for rule in ("rdsc", "replace")]
    files = [Path(name) for name in sys.argv[1:]] or shipped
    print(json.dumps({"benchmark": "depth", "paths": [depths_of(file) for file in files]}, indent=1))


def depths_of(file: Path) -> dict[str, Any]:
    finished = path_from(json.loads(file.read_text()))
    if finished.covered() < 0.999:
        sys.exit(f"{file} is incomplete. Run swm search first.")

    def searched(layers: int | None = None) -> ThresholdPath:
        scores = finished.similarities
        path = ThresholdPath(finished.layer_count, finished.rule, finished.low, finished.high, finished.protect_last)
        return extended(path, lambda *key: scores[key], layers=layers)

    whole = searched()
    depths = sorted({step.plan.layers_left for step in whole.intervals()}, reverse=True)
    return {
        "rule": finished.rule,
        "from": finished.low,
        "windows": len(whole.similarities),
        "plans": len({step.plan for step in whole.intervals()}),
        "depths": {depth: part_of(whole, searched(depth), depth) for depth in depths},
    }


def part_of(whole: ThresholdPath, part: ThresholdPath, depth: int) -> dict[str, Any]:
    plans, all_plans = ([s for s in path.intervals() if s.plan.layers_left == depth] for path in (part, whole))
    return {
        "windows": len(part.similarities),
        "share_of_layer_runs": round(layer_runs(part) / layer_runs(whole), 2),
        "same_plans": plans == all_plans,
    }


def layer_runs(path: ThresholdPath) -> int:
    return sum(path.layer_count - window.first for _, window in path.similarities)


if __name__ == "__main__":
    main()
