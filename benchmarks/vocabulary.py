"""How far losses are off that are estimated from a sample of a large vocabulary, and what that saves.

    python benchmarks/vocabulary.py --model FOLDER_OR_FILE [--plans 12]

For random sets of dropped layers: the loss on ten calibration texts over all tokens and over the sample, in bfloat16 as
`best` searches, and the seconds that each took. Prints a line for each plan, and the largest error up to one nat above
the original's loss and beyond.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Measure one model."""
    from swm.models.decoder import layer_count
    from swm.models.load import load_model
    from swm.plan import MergePlan, dropped_plan
    from swm.search.plan_loss import PlanLoss
    from swm.search.vocabulary import sample_for
    from swm.texts.calibration import calibration_tokens

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--plans", type=int, default=12)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    tokens, count, draw = calibration_tokens(tokenizer), layer_count(model), random.Random(1)
    sample = sample_for(model, tokens)
    if sample is None:
        print("The vocabulary of this model is too small to be sampled.")
        return
    whole, estimated = PlanLoss(model, tokens, fast=True), PlanLoss(model, tokens, fast=True, sample=sample)
    original = whole(MergePlan(count))
    print(f"original {original:.4f}; {len(sample.tokens):,} tokens of {model.get_output_embeddings().out_features:,}")
    errors: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.plans):
        layers = sorted(draw.sample(range(1, count), draw.randint(1, count // 3)))
        plan = dropped_plan(count, layers)
        (exact, slow), (loss, fast) = timed(whole, plan), timed(estimated, plan)
        errors[exact > original + 1].append(abs(loss - exact))
        print(f"{layers!s:24} {exact:.4f} {loss - exact:+.4f}  {slow:.1f} s, {fast:.1f} s", flush=True)
    for beyond, found in errors.items():
        if found:
            print(f"{'beyond' if beyond else 'up to'} one nat: {len(found)} plans, off by at most {max(found):.4f}")


def timed(loss: object, plan: object) -> tuple[float, float]:
    """The loss of a plan, and the seconds that it took."""
    start = time.perf_counter()
    return loss(plan), time.perf_counter() - start  # type: ignore[operator]


if __name__ == "__main__":
    main()
