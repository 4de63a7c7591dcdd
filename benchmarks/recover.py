"""Healing with LoRA compared with a bare loop of peft and PyTorch on the same batches. Prints one JSON object.

python benchmarks/recover.py [--model smollm2-135m] [--steps 8] [--turns 3]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    import torch

    from swm.models.load import bfloat16_is_faster, load_model
    from swm.settings import preset_settings
    from swm.texts.documents import recovery_examples

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    settings = preset_settings("quick", steps=options.steps, save_every=1000)
    fast = bfloat16_is_faster(torch.device("cpu"))
    ours, bare = [], []
    for _ in range(options.turns):
        for kind, times in ((studio, ours), (loop, bare)):
            model, tokenizer = load_model(options.model)
            times.append(kind(model, tokenizer, recovery_examples(settings.texts, settings.seed), settings, fast))
    result = {
        "benchmark": "recover",
        "model": options.model,
        "tokens_of_a_step": settings.batch * settings.length,
        "bfloat16": fast,
        "seconds_of_a_step": {
            "studio": round(statistics.median(ours), 3),
            "bare_loop": round(statistics.median(bare), 3),
        },
        "speed_of_the_bare_loop": round(statistics.median(bare) / statistics.median(ours), 3),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=1))


def studio(model: Any, tokenizer: Any, examples: Any, settings: Any, fast: bool) -> float:
    """Median seconds per step of `recover`."""
    from swm.healing.lora import recover

    moments = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "precision.txt").write_text("bfloat16" if fast else "float32")
        recover(model, tokenizer, examples, settings, Path(folder), lambda *_: moments.append(time.perf_counter()))
    return median_step(moments)


def loop(model: Any, tokenizer: Any, examples: Any, settings: Any, fast: bool) -> float:
    """Median seconds per step of the shortest loop that trains the same adapters on the same batches."""
    import torch
    from peft import LoraConfig, get_peft_model

    from swm.healing.rows import training_rows

    lora = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora).train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=settings.learning_rate)
    rows = training_rows(tokenizer, examples, settings)[settings.held_out :]
    moments = []
    for step in range(settings.steps):
        batch = rows[step * settings.batch : (step + 1) * settings.batch]
        ids = torch.tensor([row["input_ids"] for row in batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapted.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        moments.append(time.perf_counter())
    return median_step(moments)


def median_step(moments: list[float]) -> float:
    """Median time between consecutive steps."""
    return statistics.median(b - a for a, b in itertools.pairwise(moments))


if __name__ == "__main__":
    main()
