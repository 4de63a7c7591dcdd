"""Ways to heal, at equal minutes: which weights are trained after layers were dropped and the merged ones fitted.

    python benchmarks/healing_ways.py [--windows 12-18] [--minutes 8] [--seeds 1234,2,3] [--ways lora,last,...]

Ways:
- lora: adapters in all layers, preset quick.
- lora-above: adapters from two layers below the lowest merged one upward; all layers below need no backward pass.
- last: all weights of the last three layers, and the head where it has weights of its own ("Reassessing Layer Pruning",
  arXiv:2411.15558).
- near: all weights of the merged layers and of those beside them.
- above: all weights from the lowest merged layer upward.

Each way trains on the same rows in the same order, in bfloat16 where that is faster, with AdamW and a learning rate
that falls with the time left; --rate changes that of full weights. Prints perplexity of held-out novels and Wikipedia,
the steps done, and the means over the seeds.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

WAYS = ("lora", "lora-above", "last", "near", "above")
TEXTS = ("lambada", "squad")
WARM_UP = 0.08  # share of the time


def main() -> None:
    """Heal one model in several ways and print a line for each."""
    import torch

    from swm.evaluation.perplexity import perplexity
    from swm.healing.rows import training_rows
    from swm.merging.fit import apply_fitted_plan
    from swm.models.decoder import layer_count
    from swm.models.load import load_model
    from swm.plan import MergePlan, parse_windows
    from swm.settings import FIT_TOKENS, preset_settings
    from swm.texts.calibration import perplexity_tokens
    from swm.texts.documents import recovery_examples

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", default="12-18")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seeds", default="1234")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate of full weights")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    plan = MergePlan(layer_count(model), parse_windows(options.windows), "fit")
    held_out = {text: perplexity_tokens(tokenizer, text) for text in TEXTS}
    found: dict[str, list[list[float]]] = {}
    for seed in map(int, options.seeds.split(",")):
        settings = preset_settings("quick", seed=seed)
        rows = training_rows(tokenizer, recovery_examples(settings.texts, seed), settings)[settings.held_out :]
        ids = torch.tensor([row["input_ids"] for row in rows])
        start = apply_fitted_plan(model, plan, ids[: -(-FIT_TOKENS // settings.length)])
        for way in options.ways.split(","):
            healed, steps = heal(copy.deepcopy(start), plan, way, ids, settings, 60 * options.minutes, options.rate)
            values = [perplexity(healed, tokens)["value"] for tokens in held_out.values()]
            found.setdefault(way, []).append(values)
            print(f"seed {seed} {way:12} {values[0]:.2f} / {values[1]:.2f} after {steps} steps", flush=True)
    for way, values in found.items():
        means = (math.exp(statistics.fmean(map(math.log, text))) for text in zip(*values, strict=True))
        print(f"mean {way:12} {' / '.join(f'{mean:.2f}' for mean in means)}")


def heal(model: Any, plan: Any, way: str, rows: Any, settings: Any, seconds: float, rate: float) -> tuple[Any, int]:
    """The model trained in one way for so many seconds, and the steps that were done."""
    import torch

    from swm.healing.lora import _with_adapters
    from swm.models.decoder import find_decoder
    from swm.models.load import bfloat16_is_faster
    from swm.plan import trained_layers

    count = plan.layers_left
    merged = [new for new, window in enumerate(plan.kept_layers()) if len(window) > 1]
    if way.startswith("lora"):
        layers = trained_layers(plan, "above" if way == "lora-above" else "all")
        trained, rate = _with_adapters(model, replace(settings), layers), settings.learning_rate
    else:
        chosen = {
            "last": range(count - 3, count),
            "near": sorted({near for new in merged for near in (new - 1, new, new + 1) if 0 <= near < count}),
            "above": range(merged[0], count),
        }[way]
        trained = model.requires_grad_(False)
        for layer in chosen:
            find_decoder(model).layers[layer].requires_grad_(True)
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        if way == "last" and not tied:
            model.get_output_embeddings().requires_grad_(True)
    torch.manual_seed(settings.seed)
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    start, step, fast = time.monotonic(), 0, bfloat16_is_faster(torch.device("cpu"))
    trained.train()
    while (done := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, done / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
        places = torch.arange(step * settings.batch, (step + 1) * settings.batch) % len(rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = trained(rows[places], labels=rows[places], use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        step += 1
    return (trained.merge_and_unload() if way.startswith("lora") else trained).eval(), step


if __name__ == "__main__":
    main()
