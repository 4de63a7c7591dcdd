"""Main memory that merging by rule `fit` and healing with QLoRA need, with room for the model and without.

A Llama of 250 million random weights in bfloat16 is merged by rule `fit`, then healed for one step with preset qlora
and its default repair, twice: with all of this machine's memory, and with too little for the weights. Counted: the most
memory of each process that is its own (without pages of files, which the system can drop), minus that of a process that
does the same with a tiny model. Prints one JSON object.

    python benchmarks/healing_memory.py [--width 1024] [--layers 12] [--room 1.5]
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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
HOW = "--preset qlora --steps 1 --batch 1 --length 128 --held-out 2 --save-every 1 --rank 4"


def main() -> None:
    """Merge and heal a tiny and a large model, and print what the processes took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--room", default="1.5", help="GiB for a process; libraries and solving take 0.5 each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"SWM_HOME": home, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        _, libraries = peaks("tiny", Path(home), 64, 4)
        found = {}
        for name, room in (("with room", ""), ("without", options.room)):
            size, own = peaks(name.replace(" ", "-"), Path(home), options.width, options.layers, room)
            found[name] = {stage: round((own[stage][0] - libraries[stage][0]) / size, 2) for stage in own}
            found[name] |= {f"{stage}_seconds": own[stage][1] for stage in own}
            print(name, found[name], file=sys.stderr, flush=True)
    print(json.dumps({"weight_bytes": size, "times the weights": found}, indent=1))


def peaks(name: str, home: Path, width: int, layers: int, room: str = "") -> tuple[int, dict[str, tuple[int, float]]]:
    """Bytes of a model's weights; for merging and healing the most memory and the seconds."""
    from benchmarks.random_llama import write_random_llama

    folder = home / f"{name}-model"
    size = write_random_llama(folder, width, layers)
    peak(["create", name, "--model", str(folder)])
    found = {}
    commands = {"merge": ["merge", name, "run", "--windows", "1-2", "--rule", "fit"]}
    for stage, command in {**commands, "recover": ["recover", name, "run", *HOW.split()]}.items():
        found[stage] = peak(command, room)
    return size, found


def peak(command: list[str], room: str = "") -> tuple[int, float]:
    """The most memory of a command's process that is its own, in bytes, and its seconds."""
    environment = {**os.environ, **({"SWM_MEMORY": room} if room else {})}
    start, most = time.monotonic(), 0
    process = subprocess.Popen([sys.executable, "-m", "swm", *command], cwd=ROOT, env=environment, stdout=-3, stderr=-1)
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                most = max(most, 1024 * int(line.split()[1]))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.stderr.read().decode() if process.stderr else "failed")
    return most, round(time.monotonic() - start, 1)


if __name__ == "__main__":
    main()
