"""CKA of all layer pairs, compared with a plain forward pass and with CKA pair by pair. Prints one JSON object.

    python benchmarks/similarity.py [--model smollm2-135m] [--repeat 3]

Pair by pair: one forward pass gives all layer outputs; debiased linear CKA then takes two Gram matrices and one product
for each pair and batch. `cka_alone` excludes that forward pass on both sides. If the outputs of all layers do not fit
into memory, each pair needs its own forward pass: `with_a_forward_pass_each`. Times are the best of the repetitions,
which take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()

    import torch

    from swm.evaluation.speed import peak_memory
    from swm.models.decoder import size_bytes
    from swm.models.load import load_model
    from swm.similarity.layers import layer_similarity
    from swm.texts.calibration import calibration_tokens

    model, tokenizer = load_model(options.model)
    tokens = calibration_tokens(tokenizer)
    with torch.inference_mode():
        model(tokens[:1])
        seconds: dict[str, float] = {}
        for _ in range(options.repeat):
            timed(seconds, "forward", lambda: model(tokens, use_cache=False))
            timed(seconds, "forward_to_layers", lambda: outputs(model, tokens))
            timed(seconds, "all_pairs", lambda: layer_similarity(model, tokens))
        grams = timed(seconds, "pair_by_pair", lambda: pair_by_pair(model, tokens))
        together = layer_similarity(model, tokens)
        with peak_memory(model) as peak:
            layer_similarity(model, tokens)
    pairs_alone = seconds["pair_by_pair"] - seconds["forward_to_layers"]
    count = len(together) * (len(together) - 1) // 2
    print(
        json.dumps(
            {
                "benchmark": "similarity",
                "model": options.model,
                "tokens": tokens.numel(),
                "layers": len(together),
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "times_the_forward_pass": round(seconds["all_pairs"] / seconds["forward"], 2),
                "times_faster_than_pair_by_pair": {
                    "in_all": round(seconds["pair_by_pair"] / seconds["all_pairs"], 1),
                    "cka_alone": round(pairs_alone / max(1e-9, seconds["all_pairs"] - seconds["forward_to_layers"]), 1),
                    "with_a_forward_pass_each": round(
                        (pairs_alone + count * seconds["forward_to_layers"]) / seconds["all_pairs"], 1
                    ),
                },
                "largest_difference": float((grams - together).abs().max()),
                "memory_in_model_sizes": round(peak[0] / size_bytes(model), 3),
                "threads": torch.get_num_threads(),
            },
            indent=1,
        )
    )


def timed(seconds: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = call()
    seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - start)
    return result


def outputs(model: Any, tokens: Any) -> list[Any]:
    from swm.models.layer_outputs import layer_outputs
    from swm.similarity.layers import BATCH_TOKENS

    parts = tokens.tensor_split(max(1, round(tokens.numel() / BATCH_TOKENS)))
    return [layer_outputs(model, part)[1].flatten(1, 2).float() for part in parts]


def pair_by_pair(model: Any, tokens: Any) -> Any:
    """CKA of each pair separately: recomputes both Gram matrices for every pair and batch."""
    import torch

    from swm.similarity.gram import u_centred

    batches = outputs(model, tokens)

    def gram(states: Any) -> Any:
        states = states - states.mean(0)
        return u_centred((states @ states.T)[None])[0].double()

    count = len(batches[0])
    matrix = torch.ones(count, count, dtype=torch.float64)
    for a in range(count):
        for b in range(a):
            sums = torch.zeros(3, dtype=torch.float64)
            for states in batches:
                k, m = gram(states[a]), gram(states[b])
                weight = 1 / (len(k) - 3)
                sums += weight * torch.stack([(k * m).sum(), (k * k).sum(), (m * m).sum()])
            matrix[a, b] = matrix[b, a] = sums[0] / (sums[1] * sums[2]).sqrt()
    return matrix


if __name__ == "__main__":
    main()
