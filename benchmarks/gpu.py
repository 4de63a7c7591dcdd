"""Checks a GPU against the CPU, and measures what it gains. Prints one table, writes docs/gpu-NAME.json.

    make gpu            or: python benchmarks/gpu.py [--model smollm2-135m] [--device cuda] [--limit 50] [--steps 20]

First in float32 on both, without TF32: layer similarity, the threshold path, a plan, answers to the seven tasks'
questions and their log-likelihoods, the loss of a training step. Then, on the GPU alone: windows one by one and in one
batch, float32 and bfloat16, kinds of attention, torch.compile, scoring, healing; with several GPUs (or --processes) a
search that as many processes share. Without a GPU, it says so and ends. `--device cpu` compares the CPU with itself, to
try the script.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

ROUNDS = 3
BOUNDS = {  # of differences between devices: sums of other orders, in float32
    "layer similarity": 1e-4,
    "windows' similarity": 1e-4,
    "perplexity, relative": 1e-4,
    "log-likelihoods, nats": 2e-2,
    "training loss, relative": 1e-3,
}
Pair = tuple[Any, Any]  # the model on the CPU and on the device


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--texts", default="lambada")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--limit", type=int, default=50, help="documents of each task; 0 for no tasks")
    parser.add_argument("--steps", type=int, default=20, help="of healing")
    parser.add_argument("--recovery", default="instructions", help="recovery text")
    parser.add_argument("--processes", type=int, help="that share a search (default: one for each GPU)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--output", type=Path, help="file for the numbers (default: docs/gpu-NAME.json)")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        print(f"There is no GPU that torch {torch.__version__} ({built}) can use: nothing to measure.")
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    options.processes = options.processes or max(1, torch.cuda.device_count())
    same, gained = compared(options), gains(options)
    if options.processes > 1:
        gained += shared_rows(options)
    checks = [
        {"what": f"CPU and {name}: {row['number']}", "before": row["bound"], "after": row["difference"],
         "unit": "at most, is", "times": "as it should" if row["ok"] else "NOT THE SAME"}
        for row in same
    ]  # fmt: skip
    show(f"{name} beside the CPU", [*checks, *gained], ("what", "before", "after", "unit", "times"))
    file = options.output or ROOT / "docs" / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    conditions = {"torch": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    asked = {key: str(value) for key, value in vars(options).items()}
    numbers = {"device": name, "conditions": conditions, "options": asked, "same": same, "gained": gained}
    file.write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"Written to {file}")
    if not all(row["ok"] for row in same):
        sys.exit(1)


def show(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print rows as a table."""
    cells = [list(columns), *([text_of(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    print(f"\n{title}")
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def text_of(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- the same numbers ----------------------------------------------------------------------------------------------


def compared(options: argparse.Namespace) -> list[dict[str, Any]]:
    """How far the device's numbers are from the CPU's, in float32."""
    from swm.models.load import load_model
    from swm.texts.calibration import calibration_tokens

    (here, tokenizer), (there, _) = (load_model(options.model, "float32", device) for device in ("cpu", options.device))
    tokens = calibration_tokens(tokenizer, options.texts, options.count, options.length)
    pair = (here, there)
    rows = [row("layer similarity", similarity_difference(pair, tokens))]
    rows += path_rows(pair, tokens)
    rows += plan_rows(pair, tokens)
    rows += answer_rows(pair, tokenizer, options.limit) if options.limit else []
    rows.append(row("training loss, relative", training_difference(pair, tokenizer, options)))
    return rows


def row(number: str, difference: float) -> dict[str, Any]:
    bound = BOUNDS.get(number, 0.0)
    return {"number": number, "difference": difference, "bound": bound, "ok": difference <= bound}


def similarity_difference(pair: Pair, tokens: Any) -> float:
    import swm

    one, two = (swm.layer_similarity(model, tokens) for model in pair)
    return float((one - two).abs().max())


def path_rows(pair: Pair, tokens: Any) -> list[dict[str, Any]]:
    """The threshold path from 0.9: similarities of the same windows, and plans that are not the same."""
    from swm.models.decoder import layer_count
    from swm.search.find import threshold_path
    from swm.search.window_score import WindowScorer

    count = layer_count(pair[0])
    paths = [threshold_path(count, WindowScorer(model, tokens).score, 0.9) for model in pair]
    known = [path.similarities for path in paths]
    difference = max(abs(known[0][key] - known[1][key]) for key in known[0].keys() & known[1].keys())
    # A threshold may fall between the two devices' similarities of a window: there, plans differ rightly.
    ends = sorted({end for path in paths for step in path.intervals() for end in (step.low, step.high)})
    apart = [(a + b) / 2 for a, b in pairwise(ends) if b - a > 4 * BOUNDS["windows' similarity"]]
    plans = [[found.plan.windows if (found := path.plan_at(at)) else None for at in apart] for path in paths]
    others = sum(one != two for one, two in zip(*plans, strict=True))
    return [row("windows' similarity", difference), row(f"plans that differ, of {len(apart)}", float(others))]


def plan_rows(pair: Pair, tokens: Any) -> list[dict[str, Any]]:
    """A plan of SLEB: the same layers, and the perplexity of its model."""
    import swm
    from swm.evaluation.perplexity import perplexity
    from swm.models.decoder import layer_count

    layers = max(2, round(0.8 * layer_count(pair[0])))
    plans = [swm.plan_with("sleb", model, tokens, layers) for model in pair]
    values = [perplexity(swm.apply_plan(model, plans[0]), tokens)["value"] for model in pair]
    return [
        row("plans of SLEB that differ, of 1", float(plans[0] != plans[1])),
        row("perplexity, relative", abs(values[0] / values[1] - 1)),
    ]


def answer_rows(pair: Pair, tokenizer: Any, limit: int) -> list[dict[str, Any]]:
    """The seven tasks: log-likelihoods of all choices; answers may differ only where two choices are as likely."""
    from swm.evaluation.task_names import TASKS
    from swm.evaluation.tasks import zero_shot

    scores = [zero_shot(model, tokenizer, TASKS, limit) for model in pair]
    most, others, bound = 0.0, 0, BOUNDS["log-likelihoods, nats"]
    for one, two in zip(*scores, strict=True):
        for a, b in zip(one.answers, two.answers, strict=True):
            most = max([most, *(abs(x - y) for x, y in zip(a["log_likelihoods"], b["log_likelihoods"], strict=True))])
            likely = sorted(a["log_likelihoods"], reverse=True)
            others += a["picked"] != b["picked"] and likely[0] - likely[1] > 2 * bound
    return [row("log-likelihoods, nats", most), row("clear answers that differ", float(others))]


def training_difference(pair: Pair, tokenizer: Any, options: argparse.Namespace) -> float:
    losses = [healed(copy.deepcopy(model), tokenizer, options, 2, "off")[0] for model in pair]
    return max(abs(one / two - 1) for one, two in zip(*losses, strict=True))


def healed(
    model: Any, tokenizer: Any, options: argparse.Namespace, steps: int, bfloat16: str
) -> tuple[list[float], float]:
    """Losses of some LoRA steps, and the tokens trained on in a second, without the first two steps."""
    from swm.healing import trainer
    from swm.healing.lora import recover
    from swm.settings import preset_settings
    from swm.texts.documents import recovery_examples

    settings = preset_settings("quick", steps=steps, save_every=steps, length=options.length, held_out=8)
    losses, times = [], []

    def on_step(step: int, steps: int, numbers: dict[str, float]) -> None:
        if "loss" in numbers:
            losses.append(numbers["loss"])
            times.append(time.perf_counter())

    decides = trainer.bfloat16_is_faster
    trainer.bfloat16_is_faster = lambda device: bfloat16 == "on"
    try:
        with tempfile.TemporaryDirectory() as folder:
            recover(model, tokenizer, recovery_examples(options.recovery), settings, Path(folder), on_step)
    finally:
        trainer.bfloat16_is_faster = decides
    each = [after - before for before, after in pairwise(times[1:])]
    return losses, settings.batch * settings.length / statistics.median(each) if each else math.nan


# ---- what is gained ------------------------------------------------------------------------------------------------


def gains(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of what is faster how much, each measured in turn on the device."""
    from swm.models.load import load_model
    from swm.texts.calibration import calibration_tokens

    model, tokenizer = load_model(options.model, "float32", options.device)
    tokens = calibration_tokens(tokenizer, options.texts, options.count, options.length).to(model.device)
    rows = window_rows(model, tokens)
    rows += forward_rows(model, tokens, options)
    rows += score_rows(model, tokenizer, options) if options.limit else []
    plain, fast = (healed(load_model(options.model, "float32", options.device)[0], tokenizer, options,
                          max(4, options.steps), how)[1] for how in ("off", "on"))  # fmt: skip
    rows.append(gain("healing, float32 and bfloat16", plain, fast, "tokens/s"))
    return rows


def gain(what: str, before: float, after: float, unit: str) -> dict[str, Any]:
    times = before / after if unit.startswith(("s", "ms")) else after / before
    return {"what": what, "before": before, "after": after, "unit": unit, "times": times}


def seconds(work: Callable[[], Any], model: Any) -> float:
    """Median seconds of some rounds, after one that is not counted."""
    from swm.evaluation.generation import wait_for_device

    found = []
    for _ in range(ROUNDS + 1):
        wait_for_device(model)
        start = time.perf_counter()
        work()
        wait_for_device(model)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def window_rows(model: Any, tokens: Any) -> list[dict[str, Any]]:
    """Windows one by one against four in a batch, and float32 against bfloat16."""
    from swm.models.decoder import layer_count
    from swm.plan import Window
    from swm.search.window_score import WindowScorer

    top = layer_count(model) - 2
    windows = [Window(first, first + 1) for first in range(max(0, top - 4), top)]
    each = 1000 / len(windows)
    plain, fast = WindowScorer(model, tokens), WindowScorer(model, tokens, fast=True)

    def batched(scorer: Any) -> list[float]:
        scorer._made.clear()  # so that each window is merged again, as in a search
        return list(scorer.score_together((), windows))

    alone = each * seconds(lambda: [plain.score((), window) for window in windows], model)
    batch = each * seconds(lambda: batched(plain), model)
    quick = each * seconds(lambda: batched(fast), model)
    return [
        gain(f"windows, one by one and {len(windows)} in a batch", alone, batch, "ms each"),
        gain("windows in a batch, float32 and bfloat16", batch, quick, "ms each"),
    ]


def forward_rows(model: Any, tokens: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens a second of a forward pass in bfloat16: kinds of attention, then torch.compile."""
    import torch

    from swm.models.load import load_model

    def speed(each: Any) -> float:
        with torch.inference_mode():
            return tokens.numel() / seconds(lambda: each(tokens, use_cache=False, logits_to_keep=1), model)

    small = load_model(options.model, "bfloat16", options.device)[0]
    rows, speeds = [gain("reading, float32 and bfloat16", speed(model), speed(small), "tokens/s")], {}
    for kind in ("eager", "sdpa", "flash_attention_2"):
        try:
            small.set_attn_implementation(kind)
            speeds[kind] = speed(small)
        except Exception as error:  # not installed, or not for this device: said in the table
            rows.append({"what": f"attention, {kind}", "before": "", "after": str(error).split(". ")[0][:60]})
    rows += [gain(f"attention, eager and {kind}", speeds["eager"], value, "tokens/s")
             for kind, value in speeds.items() if kind != "eager"]  # fmt: skip
    small.set_attn_implementation("sdpa")
    if options.no_compile:
        return rows
    try:
        compiled, start = torch.compile(small), time.perf_counter()
        value = speed(compiled)
        rows.append(gain(f"torch.compile ({time.perf_counter() - start:.0f} s)", speeds["sdpa"], value, "tokens/s"))
    except Exception as error:  # needs a C compiler and Triton
        rows.append({"what": "torch.compile", "before": "", "after": str(error).split(". ")[0][:60]})
    return rows


def shared_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a search from 0.92 by one process and by several, each with a GPU of its own where there are some."""
    from torch.distributed import run as torchrun

    def searched(processes: int) -> tuple[float, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, "SWM_HOME": home, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            text = ["--texts", options.texts, "--count", str(options.count), "--length", str(options.length)]
            one = [sys.executable, "-m", "swm"]
            many = [sys.executable, "-m", torchrun.__name__, f"--nproc-per-node={processes}", "-m", "swm"]
            create = [*one, "create", "e", "--model", options.model, "--dtype", "float32", *text]
            search = [*(many if processes > 1 else one), "search", "e", "--from", "0.92", "--no-answers"]
            subprocess.run(create, check=True, env=environment, stdout=subprocess.DEVNULL)
            start = time.perf_counter()
            subprocess.run(search, check=True, env=environment, stdout=subprocess.DEVNULL)
            took = time.perf_counter() - start
            path = json.loads((Path(home) / "experiments" / "e" / "path" / "rdsc.json").read_text())
            return took, {name: path[name] for name in ("similarities", "perplexities")}

    (alone, path), (together, other) = searched(1), searched(options.processes)
    same = "the same path" if path == other else "ANOTHER PATH"
    return [gain(f"search by 1 and {options.processes} processes: {same}", alone, together, "s")]


def score_rows(model: Any, tokenizer: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of scoring, on the CPU and on the device."""
    from swm.evaluation.task_names import TASKS
    from swm.evaluation.tasks import zero_shot
    from swm.models.load import load_model

    def scored(each: Any) -> float:
        start = time.perf_counter()
        zero_shot(each, tokenizer, TASKS, options.limit)
        return time.perf_counter() - start

    here = load_model(options.model, "float32", "cpu")[0]
    return [gain(f"seven tasks, {options.limit} documents each, CPU and device", scored(here), scored(model), "s")]


if __name__ == "__main__":
    main()
