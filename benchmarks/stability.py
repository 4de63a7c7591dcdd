"""How much calibration text a choice of layers needs: the same planner on other texts of the same kind.

    python benchmarks/stability.py [--model smollm2-135m] [--planners angular,perplexity,sleb] [--layers 24]
        [--counts 2,5,10,20,40] [--seeds 1,2,3,4] [--length 128] [--fitted]

For each number of texts, the planner chooses once with each seed, which draws other texts. Prints the seconds of a
choice, the share of dropped layers that two seeds have in common (mean over pairs), how many different plans came out,
and the loss on held-out novels and Wikipedia (nats per token) of the models without these layers: mean over seeds,
smallest and largest. With --fitted, these models' merged layers are fitted, all on the same text.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

TEXTS = ("lambada", "squad")


def main() -> None:
    """Print a line for each planner and number of texts."""
    from swm.evaluation.perplexity import perplexity
    from swm.merging.apply import apply_plan
    from swm.merging.fit import apply_fitted_plan
    from swm.models.decoder import layer_count
    from swm.models.load import load_model
    from swm.plan import dropped_plan
    from swm.planners.plan_with import plan_with
    from swm.texts.calibration import calibration_tokens, fit_tokens, perplexity_tokens

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--planners", default="angular,perplexity,sleb")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--counts", default="2,5,10,20,40")
    parser.add_argument("--seeds", default="1,2,3,4")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--fitted", action="store_true")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    count, held_out = layer_count(model), {text: perplexity_tokens(tokenizer, text) for text in TEXTS}
    known: dict[frozenset[int], list[float]] = {}
    for planner, number in itertools.product(options.planners.split(","), map(int, options.counts.split(","))):
        start, chosen = time.monotonic(), []
        for seed in map(int, options.seeds.split(",")):
            tokens = calibration_tokens(tokenizer, "lambada", number, options.length, seed)
            to_fit_on = partial(fit_tokens, tokenizer, "lambada", options.length, seed, skip=number)
            plan = plan_with(planner, model, tokens, options.layers, seed, fast=True, fit_tokens=to_fit_on)
            chosen.append(frozenset(range(count)) - frozenset(plan.base_layers()))
        seconds = (time.monotonic() - start) / len(chosen)
        for layers in set(chosen) - set(known):
            plan = dropped_plan(count, layers)
            if options.fitted:
                text = fit_tokens(tokenizer, "lambada", options.length, seed=0)
                smaller = apply_fitted_plan(model, replace(plan, rule="fit"), text, fast=True)
            else:
                smaller = apply_plan(model, plan)
            known[layers] = [math.log(perplexity(smaller, tokens)["value"]) for tokens in held_out.values()]
        common = [len(one & other) / len(one) for one, other in itertools.combinations(chosen, 2)] or [1]
        print(
            f"{planner:12} {number:3} texts  {seconds:6.1f} s  in common {100 * statistics.fmean(common):3.0f} %  "
            f"{len(set(chosen))} plans  {'  '.join(spread([known[one][place] for one in chosen]) for place in (0, 1))}",
            flush=True,
        )


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


if __name__ == "__main__":
    main()
