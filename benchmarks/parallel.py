"""Similarity in two processes against one, a thread each: seconds from the loaded model to the matrix, in turn.

python benchmarks/parallel.py --count 96
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
ROUNDS = 3


def seconds(processes: int, home: Path) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    subprocess.run(
        [*command, "-m", "swm", "measure", "bench"], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    data = json.loads((home / "experiments" / "bench" / "similarity" / "cka.json").read_text())
    return float(data["conditions"]["seconds"])


def main() -> None:
    from swm.models import bundled_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=96, help="texts of 256 tokens")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SWM_HOME"] = folder
        create = [sys.executable, "-m", "swm", "create", "bench", "--model", str(bundled_file("smollm2-135m"))]
        subprocess.run([*create, "--count", str(options.count), "--length", "256"], cwd=ROOT, check=True)
        seconds(1, Path(folder))  # converts the model, times a token
        rows = [(seconds(1, Path(folder)), seconds(2, Path(folder))) for _ in range(ROUNDS)]
    ratios = [one / two for one, two in rows]
    print(json.dumps({"tokens": 256 * options.count, "one_and_two_processes_seconds": rows,
                      "times_as_fast": [round(ratio, 2) for ratio in ratios],
                      "median": round(statistics.median(ratios), 2)}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
