"""What leaving out attention costs, against dropping whole layers with as many parameters.

    python benchmarks/attention.py [--model smollm2-135m] [--counts 4,8]

Layers of both kinds are chosen on the same calibration text, one after the other by the loss; nothing is fitted or
healed. Prints perplexity of held-out novels and Wikipedia, and how much smaller weights and cache are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Print a line for the model, and two for each number of attentions."""
    import torch

    from swm.evaluation.perplexity import perplexity
    from swm.merging.apply import apply_plan
    from swm.models.decoder import find_decoder, parameter_count
    from swm.models.load import load_model
    from swm.planners.plan_with import plan_with
    from swm.reporting.numbers import interval
    from swm.settings import PERPLEXITY_TEXTS
    from swm.stages.without_attention import least_needed_attention, silence
    from swm.texts.calibration import calibration_tokens, perplexity_tokens

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--counts", default="4,8")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    tokens = calibration_tokens(tokenizer)
    texts = {name: perplexity_tokens(tokenizer, name) for name in PERPLEXITY_TEXTS}
    layers = find_decoder(model).layers
    attention = parameter_count(layers[1].self_attn)  # type: ignore[arg-type]
    whole, total = parameter_count(layers[1]), parameter_count(model)

    def line(name: str, tried: torch.nn.Module, saved: int, cached: int) -> None:
        found = ", ".join(f"{text} {interval(perplexity(tried, rows))}" for text, rows in texts.items())  # type: ignore[arg-type]
        print(f"{name}: {found}; weights {-saved / total:+.1%}, cache {-cached / len(layers):+.1%}", flush=True)

    line("original", model, 0, 0)
    counts = [int(count) for count in options.counts.split(",")]
    gone, _ = least_needed_attention(model, tokens, max(counts))
    for count in counts:
        dropped = max(1, round(count * attention / whole))
        plan = plan_with("sleb", model, tokens, layers=len(layers) - dropped)
        line(f"{dropped} layers dropped ({plan.windows})", apply_plan(model, plan), dropped * whole, dropped)
    for count in sorted(counts):  # the weights stay zero, so the fewest first
        silence(model, gone[:count])
        line(f"{count} without attention ({sorted(gone[:count])})", model, count * attention, count)


if __name__ == "__main__":
    main()
