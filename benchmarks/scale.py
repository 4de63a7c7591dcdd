"""Speedup from several processes, and predictions for larger machines. Prints one JSON object.

`python benchmarks/scale.py` measures the bundled model's stages in one and in two processes with one thread each, in
turn, and compares each with a simulation. The simulation uses rates measured in a single process (`swm measure` stores
them; a step with half a batch gives the fixed cost of a step) and how much two processes slow each other down.
`python benchmarks/scale.py --extrapolate` prints the tables of docs/scale.md: nothing in them is measured, everything
is calculated from MACHINE and MODELS below.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from swm.registry import PLANNERS
from swm.settings import FIT_TOKENS, PLAN_BUDGET, PRESETS, SAMPLE_PROMPTS, SAMPLE_TOKENS
from swm.workspace.estimate import (
    BACKWARD,
    ONE_PLAN_RUNS,
    PATH_RUNS,
    PERPLEXITY_TOKENS,
    SIZES,
)
from swm.workspace.training_memory import activation_bytes, adapter_bytes

TASK_TOKENS = sum(tokens for tokens, _ in SIZES.values()) / len(SIZES)  # of a document, mean of the seven tasks
ROUNDS, COUNT, LENGTH, STEPS, DOCUMENTS = 3, 32, 256, 4, 40
TASKS = ("piqa", "arc_easy")
CKA = 1.11  # times a forward pass, see LOG.md
BATCH, BATCH_TOKENS = 8, 512  # sequences per recovery step; tokens per batch of the measure stage


@dataclass(frozen=True)
class Link:
    """A connection that sums numbers over processes by ring all-reduce."""

    bytes_per_second: float
    seconds_each: float = 1e-3

    def seconds(self, count_bytes: float, processes: int) -> float:
        if processes == 1:
            return 0.0
        return self.seconds_each + 2 * (processes - 1) / processes * count_bytes / self.bytes_per_second


@dataclass(frozen=True)
class Work:
    """The work of a stage.

    Attributes:
        units: units of work that processes share, of `seconds` each.
        fixed: seconds of work that every process does.
        added_bytes: bytes summed over the processes.
    """

    units: int
    seconds: float
    fixed: float = 0.0
    added_bytes: float = 0.0

    def simulated(self, processes: int, slowdown: float, between: Link) -> float:
        """Seconds until the process with the most units has finished and the sums are exchanged."""
        own = self.fixed + math.ceil(self.units / processes) * self.seconds
        return own * (slowdown if processes > 1 else 1.0) + between.seconds(self.added_bytes, processes)


# ---- measured -----------------------------------------------------------------------------------------------------


def swm(processes: int, *arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    subprocess.run([*command, "-m", "swm", *arguments], cwd=ROOT, env=environment, check=True, capture_output=True)


def alone(*arguments: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "swm", *arguments], cwd=ROOT, env=environment, check=True, capture_output=True
    )


def measured(home: Path, chosen: list[str], rounds: int) -> dict[str, Any]:
    from swm.workspace.experiments import Experiment

    alone("create", "bench", "--model", "smollm2-135m", "--count", f"{COUNT}", "--length", f"{LENGTH}")
    alone("measure", "bench")
    alone("merge", "bench", "run", "--windows", "22-23,26-27")
    experiment = Experiment.open("bench")
    run = experiment.run("run")

    def measure(processes: int) -> float:
        swm(processes, "measure", "bench")
        return float((experiment.similarity("cka") or {})["conditions"]["seconds"])

    def recover(processes: int, batch: int = BATCH) -> float:
        """Median seconds per step, without the first step."""
        options = ["--steps", f"{STEPS}", "--save-every", "1000", "--repair", "none", "--held-out", "8"]
        options += ["--batch", f"{batch}"]
        swm(processes, "recover", "bench", "run", *options, "--seed", f"{next(seeds)}")
        times = [event["time"] for event in run.events() if "loss" in event]
        return statistics.median(b - a for a, b in itertools.pairwise(times))

    def evaluate(processes: int) -> float:
        for file in (home / "cache" / "scores").glob("*.json"):
            file.unlink()
        swm(processes, "evaluate", "bench", "run", "--tasks", ",".join(TASKS), "--limit", f"{DOCUMENTS}")
        return float((run.scores() or {})["conditions"]["seconds"])

    seeds = itertools.count()
    result: dict[str, Any] = {}
    stages = {"measure": measure, "recover": recover, "evaluate": evaluate}
    for name, stage in ((name, stages[name]) for name in chosen):
        rows = [(stage(1), stage(2)) for _ in range(rounds)]
        one, two = (statistics.median(row[n] for row in rows) for n in (0, 1))
        ratios = [round(a / b, 2) for a, b in rows]
        result[name] = {"seconds": [one, two], "times_as_fast": ratios, "median": statistics.median(ratios)}
    if "recover" in chosen:
        result["half_a_batch_seconds"] = statistics.median(recover(1, BATCH // 2) for _ in range(rounds))
        result["adapter"] = run.settings["recovery"]["trained_parameters"]
    return result | {"cost": experiment.cost()}


PRODUCT = """
import sys, time, torch
torch.set_num_threads(1)
a, b = torch.randn(512, 576), torch.randn(576, 1536)
until, done = time.time() + 6, 0
while time.time() < until:
    a @ b; done += 1
print(done)
"""
REDUCE = """
import time, torch, torch.distributed as dist
dist.init_process_group("gloo")
numbers = torch.ones(1_000_000)
dist.all_reduce(numbers)
start = time.time()
for _ in range(10): dist.all_reduce(numbers)
if dist.get_rank() == 0: print((time.time() - start) / 10)
"""


def slowdown() -> float:
    """How much longer matrix products take when two processes run them at the same time than in one process alone."""

    def products(count: int) -> float:
        children = [subprocess.Popen([sys.executable, "-c", PRODUCT], stdout=subprocess.PIPE) for _ in range(count)]
        return statistics.mean(float(child.communicate()[0]) for child in children)

    return statistics.median(products(1) / products(2) for _ in range(ROUNDS))


def link() -> Link:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(REDUCE)
        file.flush()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", file.name]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return Link(4_000_000 / float(done.stdout))


def compared(measurements: dict[str, Any], chosen: list[str], slower: float, between: Link) -> dict[str, Any]:
    """Measured times together with simulated ones, by stage."""
    cost = measurements["cost"]
    read, token = 1 / cost["forward_tokens_per_second"], (cost["layers_ms"] + cost["rest_ms"]) / 1000
    work = {"measure": Work(COUNT * LENGTH // BATCH_TOKENS, CKA * BATCH_TOKENS * read, 0, 3 * 8 * 30 * 30)}
    documents = DOCUMENTS * len(TASKS)
    per_document = (TASK_TOKENS * documents + PERPLEXITY_TOKENS) * read / documents
    work["evaluate"] = Work(documents, per_document, len(SAMPLE_PROMPTS) * SAMPLE_TOKENS * token)
    if "recover" in chosen:
        whole, half = measurements["recover"]["seconds"][0], measurements["half_a_batch_seconds"]
        per_sequence = 2 * (whole - half) / BATCH
        work["recover"] = Work(BATCH, per_sequence, whole - BATCH * per_sequence, 4 * measurements["adapter"])
    result: dict[str, Any] = {}
    for stage in chosen:
        simulated = [work[stage].simulated(processes, slower, between) for processes in (1, 2)]
        seconds = measurements[stage]["seconds"]
        result[stage] = {
            **measurements[stage],
            "simulated": [round(s, 2) for s in simulated],
            "simulated_by_measured": [round(a / b, 2) for a, b in zip(simulated, seconds, strict=True)],
        }
    return result


# ---- extrapolated -------------------------------------------------------------------------------------------------

MACHINE = {  # assumed, not measured: an H100 at 40 % of its peak in bfloat16
    "flops": 0.4 * 989e12,
    "memory": 80 * 10**9,
    "host_link": 50e9,  # bytes per second from the host's memory
    "inside": Link(300e9, 3e-5),  # between up to eight GPUs of one host
    "outside": Link(40e9, 1e-4),  # between hosts
    "disk": 2e9,  # bytes per second
    "dollars": 2.5,  # for one GPU and hour
}
SPLIT = 0.88  # share of what each process could bring to a search that it brings: 1.77 times with two (LOG.md)
DEQUANTIZED = 1.5  # times as long with weights of four bits: assumed
MODELS = {  # layers, hidden size, parameters per layer, vocabulary
    "7B": (32, 4096, 202_383_360, 32_000),
    "13B": (40, 5120, 317_204_480, 32_000),
    "70B": (80, 8192, 855_654_400, 32_000),
    "405B": (126, 16_384, 3_187_703_808, 128_256),
}


def extrapolated(model: str, gpus: int, tokens: int = 1280) -> dict[str, Any]:
    layers, width, layer_parameters, vocabulary = MODELS[model]
    weights = 2 * (layers * layer_parameters + 2 * vocabulary * width)
    flops = MACHINE["flops"]
    between = MACHINE["inside"] if gpus <= 8 else MACHINE["outside"]
    fits, shared = weights < 0.8 * MACHINE["memory"], weights / gpus < 0.8 * MACHINE["memory"]
    run = 2 * tokens * layer_parameters / flops  # one layer over the calibration text
    if not (fits or shared):
        run = max(run, 2 * layer_parameters / MACHINE["host_link"])  # loaded from the host for each run
    lora = adapter_bytes(16, layers, width) / 4
    step_tokens = 64 * 256
    training_flops = BACKWARD * 2 * step_tokens * layers * layer_parameters
    step = training_flops / flops / min(gpus, 64) + between.seconds(lora, gpus)
    if not fits and shared:  # FSDP gathers every layer twice; the adapters' gradients are summed above
        step += 2 * weights / between.bytes_per_second
    activations = activation_bytes(step_tokens // gpus, 1, width) + 4 * step_tokens // gpus * width * layers
    gpu_bytes = (weights if fits else weights / gpus) + lora * 4 + activations
    scoring = 2 * 20_000 * TASK_TOKENS * layers * layer_parameters / flops
    scoring /= gpus if fits else 1  # a model spread over several GPUs is scored in one process
    return {
        "weights_gb": round(weights / 1e9),
        "search": "one GPU" if fits else f"spread over {gpus}" if shared else "from the host's memory",
        "search_one_threshold_s": round(ONE_PLAN_RUNS * layers * run, 1),
        "search_path_min": round(PATH_RUNS * layers * run / 60, 1),
        "recover_step_s": round(step, 2) if (fits or shared) and gpu_bytes < MACHINE["memory"] else None,
        "recover_gpu_gb": round(gpu_bytes / 1e9),
        "evaluate_20k_documents_min": round(scoring / 60, 1) if fits or shared else None,
    }


def study(model: str, gpus: int, four_bits: bool = False, tokens: int = 1280) -> dict[str, Any]:
    """Minutes of each stage of a study, its hours, and its price.

    The study: similarity, the whole threshold path, one plan at four fifths of the layers (by `best`, which needs the
    model on one GPU, otherwise by `sleb`), that plan merged, healed and scored, and the control; preset standard, 1,000
    documents of each of seven tasks, four models scored.

    Args:
        four_bits: heals with QLoRA on one of the GPUs instead of LoRA on all.
    """
    layers, width, layer_parameters, vocabulary = MODELS[model]
    rates, preset, left = extrapolated(model, gpus, tokens), PRESETS["standard"], round(0.8 * layers)
    weights = 2 * (layers * layer_parameters + 2 * vocabulary * width)
    copies = gpus if rates["search"] == "one GPU" else 1  # each searches with a copy of its own
    read = 2 * layers * layer_parameters / MACHINE["flops"]  # seconds for each token, on one GPU
    if rates["search"] == "from the host's memory":
        read = max(read, weights / MACHINE["host_link"] / tokens)
    planner = "best" if rates["search"] == "one GPU" else "sleb"
    shared = SPLIT * copies if copies > 1 else 1.0
    step_tokens = preset.batch * preset.length
    step = BACKWARD * step_tokens * 2 * layers * layer_parameters / MACHINE["flops"]
    if four_bits:
        step *= DEQUANTIZED
    elif copies == 1:  # FSDP2: each GPU computes its share, and every step gathers the weights twice
        step = step / gpus + 2 * weights / MACHINE["inside"].bytes_per_second
    else:
        step /= min(gpus, preset.batch)
    seconds = {
        "similarity": 1.1 * read * tokens + weights / MACHINE["disk"],
        "threshold path": rates["search_path_min"] * 60 / shared + weights / MACHINE["disk"],
        "plan": PLANNERS[planner].tokens_read(layers, left, PLAN_BUDGET, tokens) * read / shared,
        "merging": 3 * weights / MACHINE["disk"],
        "healing, two models": 2 * (preset.steps * step + 2 * FIT_TOKENS * read + 3 * weights / MACHINE["disk"]),
        "scoring, four models": 4 * 7 * 1000 * TASK_TOKENS * read / copies,
    }
    hours = sum(seconds.values()) / 3600
    minutes = {stage: round(value / 60, 1) for stage, value in seconds.items()}
    return {**minutes, "hours": round(hours, 2), "dollars": round(hours * gpus * MACHINE["dollars"], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extrapolate", action="store_true")
    parser.add_argument("--stages", default="measure,recover,evaluate")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if options.extrapolate:
        result: dict[str, Any] = {m: {f"{g} GPUs": extrapolated(m, g) for g in (1, 2, 8, 64)} for m in MODELS}
        result["study"] = {
            "7B, 1 GPU": study("7B", 1),
            "7B, 8 GPUs": study("7B", 8),
            "70B, 8 GPUs": study("70B", 8),
            "70B, 8 GPUs, QLoRA on one": study("70B", 8, four_bits=True),
            "70B, 1 GPU, QLoRA": study("70B", 1, four_bits=True),
        }
    else:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SWM_HOME"] = folder
            slower, between, chosen = slowdown(), link(), options.stages.split(",")
            result = {
                "slowdown_of_two": round(slower, 3),
                "gloo_megabytes_per_second": round(between.bytes_per_second / 1e6),
                **compared(measured(Path(folder), chosen, options.rounds), chosen, slower, between),
            }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
