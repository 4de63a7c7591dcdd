"""Check the experiments that ship against the plain reference in tests/reference, with the real bundled model.

Builds and runs whole models to recompute a sample of each threshold path's similarities, the plans at some thresholds,
and the layers that the cheap planners drop. Prints one line for each check; exits with 1 if a plan differs.

    python tools/verify_examples.py [--similarities 40] [--thresholds 0.9,0.95]
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PLANNERS = ("shortgpt", "angular", "taylor", "perplexity")


def main() -> None:
    from swm.models.load import load_model
    from swm.plan import MergePlan
    from swm.search.kept_path import kept_path
    from swm.texts.calibration import calibration_tokens
    from swm.workspace.experiments import Experiment
    from tests.reference import planners, search

    options = parse()
    model, tokenizer = load_model("smollm2-135m")
    tokens = calibration_tokens(tokenizer)
    rng, wrong = random.Random(1), 0
    truth = {}
    for name in ("example-demo", "example-study", "example-healing"):
        experiment = Experiment.open(name)
        for file in sorted((experiment.folder / "plans").glob("*.json")):
            planner, layers = file.stem.rsplit("-", 1)
            if planner not in PLANNERS:
                continue
            plan = MergePlan.from_dict(experiment.planned(planner, int(layers)) or {})
            kept = {w.last if plan.rule == "keep_last" else w.first for w in plan.kept_layers()}
            method = {"perplexity": "one_shot_perplexity"}.get(planner, planner)
            expected = getattr(planners, method)(model, tokens, 30 - int(layers))
            same = set(range(30)) - kept == expected
            wrong += not same
            dropped = sorted(set(range(30)) - kept)
            verdict = "same layers" if same else f"drops {dropped}, expected {sorted(expected)}"
            print(f"{name} {file.stem}: {verdict}", flush=True)
        for rule in experiment.rules_searched():
            path = kept_path(experiment, rule)
            if path is None or rule == "fit":  # the reference does not implement rule fit
                continue
            similarity = truth.setdefault(rule, search.remembered(search.model_similarity(model, tokens, rule)))
            keys = rng.sample(sorted(path.similarities), min(options.similarities, len(path.similarities)))
            errors = [abs(similarity((w, *above)) - path.similarities[above, w]) for above, w in keys]
            print(
                f"{name} {rule}: {len(keys)} similarities, largest error {max(errors):.5f} ({path.scoring})", flush=True
            )
            for threshold in options.thresholds:
                step = path.plan_at(threshold)
                if step is None:
                    continue
                expected = search.sliding_window_search(30, similarity, threshold)
                same = step.plan.windows == expected
                wrong += not same
                verdict = "same plan" if same else f"{step.plan}, expected {expected}"
                print(f"{name} {rule} at {threshold}: {verdict}")
    sys.exit(wrong > 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--similarities", type=int, default=40)
    numbers = lambda text: [float(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--thresholds", type=numbers, default=[0.9, 0.95])
    return parser.parse_args()


if __name__ == "__main__":
    main()
