"""Error of similarities computed in bfloat16, compared with the model's own precision. Prints one JSON object.

Rescores a sample of windows of a shipped threshold path (computed in bfloat16) in float32, for each merge rule.

    python benchmarks/precision.py [--windows 200] [--experiment example-study]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    from swm.models.load import load_model
    from swm.registry import MERGE_RULES
    from swm.search.kept_path import kept_path
    from swm.search.threshold_path import DOUBT
    from swm.search.window_score import WindowScorer
    from swm.texts.calibration import calibration_tokens
    from swm.workspace.experiments import Experiment

    options = parse()
    experiment = Experiment.open(options.experiment)
    model, tokenizer = load_model(experiment.settings.model)
    tokens, rng, result = calibration_tokens(tokenizer), random.Random(1), {}
    for rule in experiment.rules_searched():
        path = kept_path(experiment, rule)
        if path is None or path.scoring != "bfloat16" or MERGE_RULES[rule].needs_text:
            continue
        scorer = WindowScorer(model, tokens, rule)
        exact = [key for key in sorted(path.similarities) if key not in path.bounds]
        keys = rng.sample(exact, min(options.windows, len(exact)))
        errors = sorted(abs(scorer.score(*key) - path.similarities[key]) for key in keys)
        result[rule] = {
            "windows": len(errors),
            "median": round(errors[len(errors) // 2], 6),
            "99 %": round(errors[int(0.99 * (len(errors) - 1))], 6),
            "largest": round(errors[-1], 6),
        }
    print(json.dumps({"benchmark": "precision", "recomputed within": DOUBT, "off": result}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--experiment", default="example-study")
    return parser.parse_args()


if __name__ == "__main__":
    main()
