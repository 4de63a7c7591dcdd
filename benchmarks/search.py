"""The search compared with the plain procedure, on one machine in one run. Prints one JSON object.

The plain procedure follows the description of the released code: for each window tried, it copies the whole model,
merges the windows in it, and runs the whole model on the text. All methods use the same model, text and threshold, and
must find the same plan. `fast` computes in the model's own precision, like `plain`; `faster` computes in bfloat16 and
confirms its plan in the model's own precision. Each method runs in its own process, so that memory is measured
separately.

With --path, also measures the whole threshold path. The plain procedure would have to run once for each distinct plan:
a sample of thresholds is run and scaled to the number of plans.

    python benchmarks/search.py [--model smollm2-135m] [--threshold 0.9] [--rule rdsc] [--path 0.5]
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

METHODS = ("fast", "faster", "plain")
SAMPLE = 3  # plans of a path to search with the plain procedure


def main() -> None:
    options = parse()
    if options.method:
        print(json.dumps(measured(options)))
        return
    results = {method: in_own_process(method, options.threshold) for method in METHODS}
    result = {
        "benchmark": "search",
        "model": options.model,
        "threshold": options.threshold,
        "rule": options.rule,
        "plan": results["plain"]["plan"],
        "same_plan": len({str(row["plan"]) for row in results.values()}) == 1,
        "seconds": {method: row["seconds"] for method, row in results.items()},
        "times_faster": {m: round(results["plain"]["seconds"] / results[m]["seconds"], 2) for m in ("fast", "faster")},
        "layer_runs": {method: row["layer_runs"] for method, row in results.items()},
        "memory_in_model_sizes": {method: row["model_sizes"] for method, row in results.items()},
        "largest_difference_of_a_similarity": results["faster"]["difference"],
        "conditions": results["fast"]["conditions"],
    }
    if options.path:
        result["path"] = whole_path(options, results["plain"]["seconds"])
    print(json.dumps(result, indent=1))


def whole_path(options: argparse.Namespace, seconds_at_threshold: float) -> dict[str, Any]:
    path = in_own_process("path", options.threshold)
    step = len(path["thresholds"]) // SAMPLE
    sample = [in_own_process("plain", threshold) for threshold in path["thresholds"][step // 2 :: step][:SAMPLE]]
    sample_seconds = [seconds_at_threshold, *(row["seconds"] for row in sample)]
    plain = len(path["thresholds"]) * sum(sample_seconds) / len(sample_seconds)
    return {
        "from": options.path,
        "plans": len(path["thresholds"]),
        "windows_tried": path["windows_tried"],
        "layer_runs": path["layer_runs"],
        "seconds": path["seconds"],
        "seconds_to_the_plan_at_the_threshold": path["first_seconds"],
        "plain_seconds_scaled_from_sample": round(plain, 1),
        "plain_sample_seconds": sample_seconds,
        "times_faster": round(plain / path["seconds"], 2),
        "memory_in_model_sizes": path["model_sizes"],
        "plan_at_milliseconds": path["plan_at_milliseconds"],
        "largest_difference_of_a_similarity": path["difference"],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--rule", default="rdsc")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--path", type=float, help="also measure the whole path, from this threshold")
    parser.add_argument("--method", choices=(*METHODS, "path"), help=argparse.SUPPRESS)
    return parser.parse_args()


def in_own_process(method: str, threshold: float) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--method", method, "--threshold", str(threshold)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from swm.evaluation.speed import peak_memory
    from swm.models.decoder import layer_count, size_bytes
    from swm.models.load import load_model
    from swm.search.find import confirmed_plan, extended
    from swm.search.threshold_path import ThresholdPath
    from swm.search.window_score import WindowScorer
    from swm.texts.calibration import calibration_tokens

    model, tokenizer = load_model(options.model, options.dtype)
    tokens = calibration_tokens(tokenizer)
    layers = layer_count(model)
    with torch.inference_mode():
        model(tokens[:1])  # warm-up: the setup cost of the first run counts for no method
    path = ThresholdPath(layers, options.rule, options.path or options.threshold)
    extra: dict[str, Any] = {}
    with peak_memory(model) as peak:
        start = time.perf_counter()
        if options.method == "plain":
            scorer: Any = Plain(model, tokens, options.rule)
        else:
            scorer = WindowScorer(model, tokens, options.rule, fast=options.method != "fast")
        if options.method == "plain":
            step = path.extend(options.threshold, scorer.score)
        elif options.method == "fast":
            step = path.extend_quickly(options.threshold, scorer.score)
        else:
            exact = WindowScorer(model, tokens, options.rule)
            step = confirmed_plan(path, options.threshold, scorer.score, exact.score)
            del exact
        if options.method == "path":
            extra["first_seconds"] = round(time.perf_counter() - start, 2)
            extended(path, scorer.score, focus=options.threshold)
        seconds = time.perf_counter() - start
    if options.method == "path":
        extra |= path_facts(path)
    return {
        "plan": [str(window) for window in step.plan.windows],
        "seconds": round(seconds, 2),
        "layer_runs": scorer.layer_runs,
        "model_sizes": round(peak[0] / size_bytes(model), 3),
        "difference": path.difference,
        **extra,
        "conditions": {
            "texts": list(tokens.shape),
            "dtype": str(model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


def path_facts(path: Any) -> dict[str, Any]:
    """One threshold for each distinct plan, and the time to look up a plan."""
    steps = path.intervals()
    by_plan = {step.plan: step.high for step in reversed(steps)}
    start = time.perf_counter()
    for i in range(200):
        path.plan_at(path.low + (path.high - path.low) * i / 199)
    return {
        "thresholds": list(by_plan.values()),
        "windows_tried": len(path.similarities),
        "plan_at_milliseconds": round(1000 * (time.perf_counter() - start) / 200, 3),
    }


class Plain:
    """Copies and re-runs the whole model for each window."""

    def __init__(self, model: Any, tokens: Any, rule: str) -> None:
        self.model, self.tokens, self.rule = model, tokens, rule
        self.layer_runs = 0
        self.reference = self._run(model)

    def score(self, above: Any, window: Any) -> float:
        from swm.merging.apply import apply_plan
        from swm.models.decoder import layer_count
        from swm.plan import MergePlan
        from swm.search.window_score import text_cosines

        plan = MergePlan(layer_count(self.model), tuple(sorted((*above, window))), self.rule)
        merged = apply_plan(copy.deepcopy(self.model), plan)
        return float(text_cosines(self._run(merged), self.reference).mean())

    def _run(self, model: Any) -> Any:
        import torch

        from swm.models.decoder import layer_count

        self.layer_runs += layer_count(model)
        with torch.inference_mode():
            return model.base_model(input_ids=self.tokens, use_cache=False).last_hidden_state


if __name__ == "__main__":
    main()
