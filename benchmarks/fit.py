"""What rules fit and scale recover after layers are dropped, on text that they do not see: perplexity of each stage.

    python benchmarks/fit.py --model FOLDER_OR_FILE --drop 8,9,16 [--drop 2,8,9,14,16] [--tokens 24576]

Held-out text: 60 texts of LAMBADA and of SQuAD's passages. Prints a line for the original, and for every set of layers
one for the model that only drops them, one with the hidden state rescaled, and one for the fitted model; with the
seconds that each took.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

HELD_OUT, LENGTH, SEED = 60, 128, 77


def main() -> None:
    """Measure one model."""
    from swm.evaluation.perplexity import perplexity
    from swm.merging.apply import apply_plan
    from swm.merging.fit import apply_fitted_plan
    from swm.models.decoder import layer_count
    from swm.models.load import load_model
    from swm.plan import dropped_plan
    from swm.texts.calibration import fit_tokens, perplexity_tokens

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--drop", action="append", required=True, metavar="LAYERS")
    parser.add_argument("--tokens", type=int, default=24_576, help="to fit on")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    texts = {name: perplexity_tokens(tokenizer, name, HELD_OUT, LENGTH, SEED) for name in ("lambada", "squad")}
    rows = fit_tokens(tokenizer, "lambada", LENGTH, SEED, options.tokens, 0)
    count = layer_count(model)

    def line(name: str, model: object, seconds: str = "") -> None:
        values = (f"{text} {perplexity(model, tokens)['value']:.1f}" for text, tokens in texts.items())
        print(f"{name:28} {'  '.join(values)}  {seconds}", flush=True)

    line(f"original, {count} layers", model)
    for layers in options.drop:
        plan = dropped_plan(count, map(int, layers.split(",")))
        line(f"without {layers}", apply_plan(model, plan))
        for rule, name in (("scale", "rescaled"), ("fit", "fitted")):
            start = time.perf_counter()
            repaired = apply_fitted_plan(model, replace(plan, rule=rule), rows, how=rule)
            line(f"without {layers}, {name}", repaired, f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
