"""Main memory that each of two processes needs to heal one model with FSDP2, on CPUs. Prints one JSON object.

A Llama of a billion random weights in bfloat16 loses a layer and is healed for one step. On CPUs each process also
keeps its share of the weights in main memory, which on GPUs it does not. Counted: the most resident memory of each
process, and what a process takes that heals a tiny model (libraries).

    python benchmarks/sharded_memory.py [--width 2048] [--layers 16]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
LAUNCH = ("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "assets" / "accelerate" / "fsdp2-2.yaml"))
HOW = "--preset quick --steps 1 --batch 2 --length 32 --held-out 2 --save-every 1 --rank 4 --repair none"


def main() -> None:
    """Heal a tiny and a large model, and print what their processes took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"SWM_HOME": home, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        _, libraries = healed("tiny", Path(home), 64, 2)
        size, peaks = healed("large", Path(home), options.width, options.layers)
    beyond = [round((peak - of_libraries) / size, 2) for peak, of_libraries in zip(peaks, libraries, strict=True)]
    print(json.dumps({"weight_bytes": size, "peak_bytes": peaks, "library_bytes": libraries, "weights_beyond": beyond}))


def healed(name: str, home: Path, width: int, layers: int) -> tuple[int, list[int]]:
    """Bytes of a model's weights, and the peaks of the two processes that heal it without one of its layers."""
    from benchmarks.random_llama import write_random_llama
    from swm.plan import MergePlan, Window
    from swm.settings import ExperimentSettings
    from swm.stages.create import create_experiment
    from swm.stages.merge import merge_run

    size = write_random_llama(home / f"{name}-model", width, layers)
    experiment = create_experiment(name, ExperimentSettings(str(home / f"{name}-model"), "lambada", 2, 32))
    merge_run(experiment.create_run("run", MergePlan(layers, (Window(0, 1),), "keep_first")))
    command = [sys.executable, *LAUNCH, str(ROOT / "tests" / "fsdp_on_cpu.py"), "recover", name, "run", *HOW.split()]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return size, [int(peak) for _, peak in sorted(re.findall(r"process (\d) peak (\d+)", done.stdout))]


if __name__ == "__main__":
    main()
