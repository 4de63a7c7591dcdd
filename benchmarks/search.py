"""The search for one plan against the plain procedure, on one machine in one run. Prints one JSON object.

Plain, as the released code is described: for each window tried a copy of the whole model, the windows merged in it, and
the whole model run on the text. Both see the same model, text, number format and threshold, and have to find the same
plan. Each is run in a process of its own, so that memory is its own.

    python benchmarks/search.py [--model smollm2-135m] [--threshold 0.9] [--rule rdsc] [--dtype float32]
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


def main() -> None:
    options = parse()
    if options.method:
        print(json.dumps(measured(options)))
        return
    fast, plain = (in_own_process(method) for method in ("fast", "plain"))
    print(
        json.dumps(
            {
                "benchmark": "search",
                "model": options.model,
                "threshold": options.threshold,
                "rule": options.rule,
                "plan": fast["plan"],
                "same_plan": fast["plan"] == plain["plan"],
                "seconds": {"fast": fast["seconds"], "plain": plain["seconds"]},
                "times_faster": round(plain["seconds"] / fast["seconds"], 2),
                "layer_runs": {"fast": fast["layer_runs"], "plain": plain["layer_runs"]},
                "memory_in_model_sizes": {"fast": fast["model_sizes"], "plain": plain["model_sizes"]},
                "conditions": fast["conditions"],
            },
            indent=1,
        )
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--rule", default="rdsc")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--method", choices=("fast", "plain"), help=argparse.SUPPRESS)
    return parser.parse_args()


def in_own_process(method: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--method", method]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from swm.models import layer_count, load_model, size_bytes
    from swm.replay import WindowScorer
    from swm.search import find_plan
    from swm.texts import calibration_tokens
    from swm.timing import peak_memory

    model, tokenizer = load_model(options.model, options.dtype)
    tokens = calibration_tokens(tokenizer)
    layers = layer_count(model)
    with torch.inference_mode():
        model(tokens[:1])  # what the first run sets up is nobody's
    with peak_memory(model) as peak:
        start = time.perf_counter()
        scorer = (
            WindowScorer(model, tokens, options.rule)
            if options.method == "fast"
            else Plain(model, tokens, options.rule)
        )
        plan = find_plan(layers, scorer.score, options.threshold, rule=options.rule)
        seconds = time.perf_counter() - start
    return {
        "plan": [str(window) for window in plan.windows],
        "seconds": round(seconds, 2),
        "layer_runs": scorer.layer_runs,
        "model_sizes": round(peak[0] / size_bytes(model), 3),
        "conditions": {
            "texts": list(tokens.shape),
            "dtype": str(model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


class Plain:
    """Copies and re-runs the whole model for each window."""

    def __init__(self, model: Any, tokens: Any, rule: str) -> None:
        self.model, self.tokens, self.rule = model, tokens, rule
        self.layer_runs = 0
        self.reference = self._run(model)

    def score(self, above: Any, window: Any) -> float:
        from swm.merge import apply_plan
        from swm.models import layer_count
        from swm.plan import MergePlan
        from swm.replay import mean_cosine

        plan = MergePlan(layer_count(self.model), tuple(sorted((*above, window))), self.rule)
        return mean_cosine(self._run(apply_plan(copy.deepcopy(self.model), plan)), self.reference)

    def _run(self, model: Any) -> Any:
        import torch

        from swm.models import layer_count

        self.layer_runs += layer_count(model)
        with torch.inference_mode():
            return model.base_model(input_ids=self.tokens, use_cache=False).last_hidden_state


if __name__ == "__main__":
    main()
