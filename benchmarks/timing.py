"""Predicted and measured size and speed of merged models. Prints one JSON object.

The predicted speed comes from the original alone (time per token in its layers and in the rest of the model); the
measured one from generating with the original and the merged model in turn.

    python benchmarks/timing.py [--model smollm2-135m] [--layers 28,24,20,15]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    import torch

    from swm.evaluation.cost import decode_cost
    from swm.evaluation.speed import time_models
    from swm.merging.apply import apply_plan
    from swm.models.decoder import layer_count, parameter_count
    from swm.models.load import config_facts, load_model
    from swm.plan import MergePlan, Window
    from swm.reporting.preview import expected_speedup
    from swm.texts.calibration import calibration_tokens

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", default="28,24,20,15", help="layers left, comma-separated")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    facts, layers = config_facts(options.model), layer_count(model)
    prompt = calibration_tokens(tokenizer)[:1, :64]
    cost = decode_cost(model, prompt)
    rows = []
    for left in map(int, options.layers.split(",")):
        plan = MergePlan(layers, (Window(layers - 2 - (layers - left), layers - 2),), "keep_first")
        small = apply_plan(model, plan)
        expected = expected_speedup(plan, cost) or 0.0
        measured = time_models([model, small], prompt, 32)[1]["speedup"]
        size = facts["parameters"] - (layers - plan.layers_left) * facts["parameters_per_layer"]
        rows.append(
            {
                "layers_left": plan.layers_left,
                "expected_speedup": round(expected, 3),
                "measured_speedup": {name: round(value, 3) for name, value in measured.items()},
                "expected_over_measured": round(expected / measured["value"], 3),
                "expected_over_real_parameters": size / parameter_count(small),
            }
        )
    result = {
        "benchmark": "timing",
        "model": options.model,
        "cost_of_a_token": cost,
        "plans": rows,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
