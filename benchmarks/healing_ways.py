"""Ways to heal, at equal minutes: which weights are trained after layers were dropped and the merged ones fitted.

    python benchmarks/healing_ways.py [--windows 12-18] [--steps 120] [--seeds 1234,2,3] [--ways lora,last,...]

Ways:
- lora: adapters in all layers, preset quick.
- own: as lora, on the original model's own answers to the prompts (self-data distillation, arXiv:2410.09982). The time
  to write them is printed and not counted: they are written once for a model, and kept.
- lora-above: adapters from two layers below the lowest merged one upward; all layers below need no backward pass.
- last: all weights of the last three layers, and the head where it has weights of its own ("Reassessing Layer Pruning",
  arXiv:2411.15558).
- near: all weights of the merged layers and of those beside them.
- above: all weights from the lowest merged layer upward.

Each way trains on the same rows in the same order, in bfloat16 where that is faster, with AdamW and a learning rate
that falls to nothing; full weights with --rate, or as in near@1e-3. A way with a number of its own, as lora:80, does so
many steps. Otherwise, a few steps of each way are timed first; then each
does as many as fit into the time of --steps with LoRA, so that another program favours none of them. Prints the
perplexity of held-out novels and Wikipedia, and over the seven tasks the choice log-probability (nats) and accuracy;
at the end the means over the seeds, and the paired difference of the choice log-probability from LoRA's, over all
documents (each averaged over the seeds first, so that the interval holds no spread over seeds).
"""

from __future__ import annotations

import argparse
import copy
import math
import re
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

WAYS = ("lora", "own", "lora-above", "last", "near", "above")
ADAPTED = WAYS[:3]
TEXTS = ("lambada", "squad")
WARM_UP = 0.08  # share of the steps
TIMED_STEPS = 6


def main() -> None:
    """Heal one model in several ways and print a line for each."""
    from swm.evaluation.perplexity import perplexity
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
    parser.add_argument("--steps", type=int, default=120, help="steps with LoRA; the others take as long")
    parser.add_argument("--documents", type=int, default=100, help="of each task")
    parser.add_argument("--seeds", default="1234")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate of full weights")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    plan = MergePlan(layer_count(model), parse_windows(options.windows), "fit")
    held_out = {text: perplexity_tokens(tokenizer, text) for text in TEXTS}
    ways, steps = options.ways.split(","), dict[str, int]()
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for seed in map(int, options.seeds.split(",")):
        settings = preset_settings("quick", seed=seed, steps=options.steps)
        ids = rows_of(tokenizer, recovery_examples(settings.texts, seed), settings)
        own = ids
        if any(way.startswith("own") for way in ways):
            own = rows_of(tokenizer, answered_by(model, tokenizer, settings), settings)
        start = apply_fitted_plan(model, plan, ids[: -(-FIT_TOKENS // settings.length)])
        if not steps:
            kinds = {"lora", *(re.split("[@:]", way)[0] for way in ways)}
            times = {kind: timed(copy.deepcopy(start), plan, kind, ids, settings) for kind in kinds}
            for way in ways:
                kind, _, own_steps = way.partition("@")[0].partition(":")
                steps[way] = int(own_steps or round(options.steps * times["lora"] / times[kind]))
            print(f"seconds of a step {times}; steps {steps}", flush=True)
        for way in ways:
            name, _, rate = way.partition("@")
            kind = name.partition(":")[0]
            rows = own if kind == "own" else ids
            healed = heal(copy.deepcopy(start), plan, kind, rows, settings, steps[way], float(rate or options.rate))
            measured = {text: perplexity(healed, tokens)["value"] for text, tokens in held_out.items()}
            measured |= answered(healed, tokenizer, options.documents)
            found[way].append(measured)
            print(f"seed {seed} {told(way, measured)}", flush=True)
    for way, each in found.items():
        print(f"mean {told(way, {key: mean([one[key] for one in each], key in TEXTS) for key in each[0]})}")
    compare(found)


def rows_of(tokenizer: Any, examples: Any, settings: Any) -> Any:
    """The token ids to train on."""
    import torch

    from swm.healing.rows import training_rows

    rows = training_rows(tokenizer, examples, settings)[settings.held_out :]
    return torch.tensor([row["input_ids"] for row in rows])


def answered_by(model: Any, tokenizer: Any, settings: Any) -> Any:
    """The examples that the preset needs, with answers by the model; prints how long it wrote."""
    from swm.healing.own_answers import own_answers
    from swm.models.load import fast_format
    from swm.texts.documents import recovery_examples

    start, given = time.monotonic(), recovery_examples(settings.texts, settings.seed)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "answers.jsonl"
        written = own_answers(model, tokenizer, given, settings, store, lambda *_: None, fast_format(model))
    print(f"{len(written)} answers written in {time.monotonic() - start:.0f} s", flush=True)
    return written


def told(way: str, measured: dict[str, Any]) -> str:
    """A line of figures."""
    perplexities = " / ".join(f"{measured[text]:.2f}" for text in TEXTS)
    return f"{way:12} {perplexities}, choice {measured['choice']:.4f}, accuracy {measured['accuracy']:.2f} %"


def mean(values: list[Any], of_logs: bool) -> Any:
    """The mean over seeds; of perplexities the geometric one."""
    if isinstance(values[0], list):
        return [value for each in values for value in each]
    return math.exp(statistics.fmean(map(math.log, values))) if of_logs else statistics.fmean(values)


def answered(model: Any, tokenizer: Any, documents: int) -> dict[str, Any]:
    """Choice log-probability and accuracy over the seven tasks, and that of each document."""
    from swm.evaluation.paired import choice_logprob
    from swm.evaluation.task_names import TASKS
    from swm.evaluation.tasks import zero_shot

    scores = zero_shot(model, tokenizer, TASKS, documents)
    by_task = [[choice_logprob(a["log_likelihoods"], a["answer"]) for a in score.answers] for score in scores]
    return {
        "choice": statistics.fmean(map(statistics.fmean, by_task)),
        "accuracy": 100 * statistics.fmean(score.value for score in scores),
        "each": [value for task in by_task for value in task],
    }


def compare(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print each way's paired difference from LoRA, or else from the first way."""
    from swm.evaluation.paired import mean_interval

    first = "lora" if "lora" in found else next(iter(found))
    seeds = zip(*(one["each"] for one in found[first]), strict=True)
    lora = [statistics.fmean(document) for document in seeds]
    for way in (way for way in found if way != first):
        documents = zip(*(one["each"] for one in found[way]), strict=True)
        differences = [statistics.fmean(document) - other for document, other in zip(documents, lora, strict=True)]
        print(f"{way} against {first}, choice: {mean_interval(differences)}")


def timed(model: Any, plan: Any, way: str, rows: Any, settings: Any) -> float:
    """Seconds of a step, without the first two."""
    seconds: list[float] = []
    heal(model, plan, way, rows, settings, TIMED_STEPS, 0.0, seconds)
    return round(statistics.median(seconds[2:]), 2)


def heal(
    model: Any,
    plan: Any,
    way: str,
    rows: Any,
    settings: Any,
    steps: int,
    rate: float,
    seconds: list[float] | None = None,
) -> Any:
    """The model trained in one way; adds the time of each step to `seconds`."""
    import torch

    from swm.healing.lora import _with_adapters
    from swm.models.decoder import find_decoder
    from swm.models.load import bfloat16_is_faster
    from swm.plan import trained_layers

    count = plan.layers_left
    merged = [new for new, window in enumerate(plan.kept_layers()) if len(window) > 1]
    if way in ADAPTED:
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
    fast = bfloat16_is_faster(torch.device("cpu"))
    trained.train()
    for step in range(steps):
        start, done = time.monotonic(), step / steps
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (done + 1 / steps) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
        places = torch.arange(step * settings.batch, (step + 1) * settings.batch) % len(rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = trained(rows[places], labels=rows[places], use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        if seconds is not None:
            seconds.append(time.monotonic() - start)
    return (trained.merge_and_unload() if way in ADAPTED else trained).eval()


if __name__ == "__main__":
    main()
