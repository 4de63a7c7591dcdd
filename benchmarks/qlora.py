"""QLoRA beside LoRA: held-out loss at the same steps, and what the weights take while adapters are trained.

    python benchmarks/qlora.py [--windows 12-18] [--steps 40] [--seed 1234]

Heals the same merged model twice, with preset quick and with preset qlora (frozen linear maps of the decoder layers in
four bits, NF4). Prints one JSON object: held-out losses before the first step and at each look, bytes of the weights
that are trained over, seconds, the held-out loss of the folded model that a user gets, and
the ratios of the losses, the bytes and the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Heal twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", default="12-18")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["SWM_HOME"] = home
        found = {preset: healed(preset, options) for preset in ("quick", "qlora")}
    compared = ("last_loss", "folded_loss", "weight_bytes", "seconds")
    ratios = {name: round(found["qlora"][name] / found["quick"][name], 4) for name in compared}
    print(json.dumps({**found, "qlora / quick": ratios}, indent=1))


def healed(preset: str, options: argparse.Namespace) -> dict[str, Any]:
    """What healing with a preset reached, and what it took."""
    from swm.plan import MergePlan, parse_windows
    from swm.settings import ExperimentSettings, preset_settings
    from swm.stages.create import create_experiment
    from swm.stages.merge import merge_run
    from swm.stages.recover import recover_run

    experiment = create_experiment(preset, ExperimentSettings(options.model))
    plan = MergePlan(experiment.layer_count, parse_windows(options.windows), "keep_first")
    run = experiment.create_run("run", plan)
    merge_run(run)
    every = max(1, options.steps // 4)
    settings = preset_settings(preset, steps=options.steps, save_every=every, seed=options.seed)
    summary = recover_run(run, settings)
    return {
        "held_out_losses": [round(loss, 4) for loss in summary["held_out_losses"]],
        "last_loss": summary["held_out_losses"][-1],
        "folded_loss": folded_loss(run, settings),
        "weight_bytes": summary.get("quantized_bytes") or run.settings["merge"]["size_bytes"],
        "seconds": run.settings["recovery"]["seconds"],
    }


def folded_loss(run: Any, settings: Any) -> float:
    """Mean loss of the healed model on the held-out rows, in nats per token."""
    import torch

    from swm.healing.rows import training_rows
    from swm.stages.loading import load_run
    from swm.texts.documents import recovery_examples

    model, tokenizer = load_run(run)
    rows = training_rows(tokenizer, recovery_examples(settings.texts, settings.seed), settings)[: settings.held_out]
    ids = torch.tensor([row["input_ids"] for row in rows])
    with torch.inference_mode():
        return round(float(model(ids, labels=ids, use_cache=False).loss), 4)


if __name__ == "__main__":
    main()
