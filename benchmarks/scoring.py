"""Scoring compared with lm-eval's own HFLM on the seven tasks, in one run. Prints one JSON object.

HFLM runs at its fastest batch size on this machine, found on a few documents. Both should give the same answers.

    python benchmarks/scoring.py [--model smollm2-135m] [--limit 100]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

BATCHES = (1, 4, 16, 64)
TRIED = 8  # documents, to find HFLM's best batch size


def main() -> None:
    import torch

    from swm.evaluation.task_names import TASKS
    from swm.evaluation.tasks import zero_shot
    from swm.models.load import load_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=100)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    zero_shot(model, tokenizer, TASKS, 1)  # loads the data sets once for both
    best = min(BATCHES, key=lambda size: sum(hflm_seconds(model, tokenizer, task, TRIED, size)[0] for task in TASKS))
    rows: dict[str, Any] = {}
    for task in TASKS:
        start = time.perf_counter()
        score = zero_shot(model, tokenizer, (task,), options.limit)[0]
        seconds = time.perf_counter() - start
        reference_seconds, reference = hflm_seconds(model, tokenizer, task, options.limit, best)
        rows[task] = {
            "seconds": round(seconds, 1),
            "hflm_seconds": round(reference_seconds, 1),
            "times_faster": round(reference_seconds / seconds, 2),
            "same_answers": score.correct == reference.correct,
            "accuracy": score.value,
        }
    total, hflm_total = (sum(row[name] for row in rows.values()) for name in ("seconds", "hflm_seconds"))
    result = {
        "benchmark": "scoring",
        "model": options.model,
        "documents_of_each_task": options.limit,
        "hflm_batch_size": best,
        "tasks": rows,
        "seconds": round(total, 1),
        "hflm_seconds": round(hflm_total, 1),
        "times_faster": round(hflm_total / total, 2),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=1))


def hflm_seconds(model: Any, tokenizer: Any, task: str, limit: int, batch: int) -> tuple[float, Any]:
    """Seconds of the same evaluation with lm-eval's own class, and its score."""
    from lm_eval.models.huggingface import HFLM

    from swm.evaluation import shared_context
    from swm.evaluation.tasks import zero_shot

    own = shared_context.SharedContextLM
    shared_context.SharedContextLM = lambda model, tokenizer: HFLM(  # type: ignore[assignment, misc]
        pretrained=model, tokenizer=tokenizer, batch_size=batch
    )
    try:
        start = time.perf_counter()
        score = zero_shot(model, tokenizer, (task,), limit)[0]
        return time.perf_counter() - start, score
    finally:
        shared_context.SharedContextLM = own  # type: ignore[misc]


if __name__ == "__main__":
    main()
