"""What a second process gains in a search, and whether it finds the same.

    python benchmarks/search_processes.py [--model smollm2-135m] [--only path] [--from 0.85] [--focus 0.9]
        [--layers 24] [--budget 200]

Searches the threshold path and a plan of `best` in one and in two processes with one thread each, in an experiment of
their own each time, and compares all files that hold what was found. Prints seconds, starting
and loading included, and the ratio. Needs two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

FILES = ("path/rdsc.json", "path/fit.json", "tried.json", "plans/best-{layers}.json", "answers/rdsc.json")
COSTS = ("seconds", "layer_runs")  # these differ


def main() -> None:
    """Print a line for each kind of search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--from", dest="low", default="0.85")
    parser.add_argument("--focus", default="0.9", help="threshold that the path begins with")
    parser.add_argument("--layers", default="24")
    parser.add_argument("--budget", default="200")
    parser.add_argument("--only", choices=["path", "best"])
    options = parser.parse_args()
    searches = {
        "path": ["search", "--from", options.low, "--focus", options.focus],
        "best": ["plan", "--planner", "best", "--layers", options.layers, "--budget", options.budget],
    }
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"SWM_HOME": home, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        for name in [options.only] if options.only else searches:
            command, *rest = searches[name]
            seconds, found = {}, {}
            for processes in (1, 2):
                experiment = f"{name}-{processes}"
                run(1, "create", experiment, "--model", options.model)
                seconds[processes] = timed(processes, command, experiment, *rest)
                found[processes] = content(Path(home) / "experiments" / experiment, options.layers)
                print(f"{name} in {processes}: {seconds[processes]:.1f} s", flush=True)
            same = "the same, bit for bit" if found[1] == found[2] else "NOT THE SAME"
            print(f"{name}: {seconds[1] / seconds[2]:.2f} times as fast; {len(found[1])} files {same}", flush=True)


def run(processes: int, *arguments: str) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), "-m", "swm", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def timed(processes: int, *arguments: str) -> float:
    start = time.monotonic()
    run(processes, *arguments)
    return time.monotonic() - start


def content(folder: Path, layers: str) -> dict[str, Any]:
    from swm.disk.files import read_json

    files = [folder / name.format(layers=layers) for name in FILES]
    return {
        file.name: {
            key: sorted(value, key=json.dumps) if isinstance(value, list) else value  # filled in another order
            for key, value in read_json(file).items()
            if key not in COSTS
        }
        for file in files
        if file.is_file()
    }


if __name__ == "__main__":
    main()
