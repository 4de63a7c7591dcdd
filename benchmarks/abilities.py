"""Answers without each layer, compared with the plain way: every request through a model without the layer.

    python benchmarks/abilities.py [--model smollm2-135m] [--requests 10] [--abilities quick] [--layers 3] [--pairs 0]

The plain way runs context and choice of each request together, by length, at its fastest batch size, in the same number
format. Its time does not depend on the layer, so it leaves out only --layers of them and takes the others for equal.
With --pairs, so many random pairs of layers are left out together as well, and their rise of bits per byte is set
against the sum of the two layers' own. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

BATCHES = (1, 4, 16)
TRIED = 32  # texts, to find the fastest batch size


def main() -> None:
    import torch

    from swm.evaluation.ability_scores import PackReplay, sharing_packs
    from swm.evaluation.packs import encoded
    from swm.models.decoder import find_decoder
    from swm.models.load import fast_format, load_model
    from swm.texts.ability_names import chosen_abilities
    from swm.texts.requests import requests_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--abilities", default="quick")
    parser.add_argument("--requests", type=int, default=10)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=0)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    model = model.bfloat16() if fast_format(model) else model
    count = len(find_decoder(model).layers)
    requests = {name: requests_of(name, "choosing", options.requests) for name in chosen_abilities(options.abilities)}
    read = {name: encoded(tokenizer, asked, model) for name, asked in requests.items()}
    start = time.perf_counter()
    make = sharing_packs(model, [each for one in read.values() for each in one])
    own: dict[tuple[str, int], dict[tuple[int, int], float]] = {}
    replays: list[tuple[str, Any]] = []
    for name, one in read.items():
        for pack in make(one):
            replay = PackReplay(model, pack)
            replays += [(name, replay)] if options.pairs else []
            for layer in range(count):
                own.setdefault((name, layer), {}).update(replay.without(layer))
    seconds = time.perf_counter() - start
    texts = [(name, each.request, choice, each.texts[choice], each.answers[choice])
             for name, one in read.items() for each in one for choice in range(len(each.texts))]  # fmt: skip
    texts.sort(key=lambda text: -len(text[3]))
    best = min(BATCHES, key=lambda size: plain(model, texts[:: max(1, len(texts) // TRIED)], 0, size)[0])
    plain_seconds, differences = 0.0, []
    left_out = [round(part * (count - 1) / max(1, options.layers - 1)) for part in range(options.layers)]
    for layer in left_out:
        took, found = plain(model, texts, layer, best)
        plain_seconds += took
        differences += [abs(own[name, layer][key] - value) / max(1.0, abs(value)) for name, key, value in found]
    whole = plain_seconds / len(left_out) * count
    result = {
        "benchmark": "abilities",
        "model": options.model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "abilities": len(requests),
        "requests_of_each": options.requests,
        "layers": count,
        "seconds": round(seconds, 1),
        "plain_seconds": round(whole, 1),
        "plain_layers_run": left_out,
        "plain_batch_size": best,
        "times_faster": round(whole / seconds, 2),
        "mean_relative_difference": sum(differences) / len(differences),
        "largest_relative_difference": max(differences),
        "threads": torch.get_num_threads(),
        **(of_pairs(replays, requests, own, count, options.pairs) if options.pairs else {}),
    }
    print(json.dumps(result))


def of_pairs(replays: list[Any], requests: Any, own: Any, count: int, pairs: int) -> dict[str, Any]:
    """How the rise of bits without two layers compares with the sum of the rises without each, over abilities."""
    from swm.evaluation.paired import bits_per_byte

    def bits(name: str, scores: Any) -> float:
        right = [(each, scores[number, each.right]) for number, each in enumerate(requests[name])]
        return statistics.fmean(bits_per_byte(value, len(each.answer.encode())) for each, value in right)

    def together(chosen: list[int]) -> dict[str, float]:
        scores: dict[str, Any] = {}
        for name, replay in replays:
            scores.setdefault(name, {}).update(replay.without_all(chosen) if chosen else replay.original())
        return {name: bits(name, found) for name, found in scores.items()}

    original, draw, both, sums = together([]), random.Random(1), [], []
    for _ in range(pairs):
        pair = sorted(draw.sample(range(2, count - 2), 2))  # the first and the last two carry everything
        for name, value in together(pair).items():
            both.append(value / original[name] - 1)
            sums.append(sum(bits(name, own[name, layer]) / original[name] - 1 for layer in pair))
    larger = statistics.fmean(b > s for b, s in zip(both, sums, strict=True))
    return {
        "pairs": pairs,
        "correlation_of_pair_and_sum": round(statistics.correlation(both, sums), 3),
        "median_pair_minus_sum": round(statistics.median(b - s for b, s in zip(both, sums, strict=True)), 3),
        "median_pair": round(statistics.median(both), 3),
        "share_larger_than_sum": round(larger, 3),
    }


def plain(model: Any, texts: list[Any], layer: int, batch: int) -> tuple[float, list[Any]]:
    """Seconds, and (ability, (request, choice), log-likelihood) of each text, from a model without the layer."""
    import torch
    from torch import nn

    from swm.models.decoder import find_decoder

    class Passed(nn.Module):
        def forward(self, hidden: Any, *others: Any, **more: Any) -> Any:
            return hidden

    layers: Any = find_decoder(model).layers
    whole, layers[layer] = layers[layer], Passed()
    found, start = [], time.perf_counter()
    with torch.inference_mode():
        for place in range(0, len(texts), batch):
            part = texts[place : place + batch]
            longest = max(len(text[3]) for text in part)
            ids = torch.tensor([text[3] + [0] * (longest - len(text[3])) for text in part])
            logits = model(input_ids=ids, use_cache=False).logits
            for row, (name, request, choice, text, answer) in enumerate(part):
                predicted = logits[row, len(text) - len(answer) : len(text)].float().log_softmax(-1)
                value = float(predicted.gather(1, torch.tensor(answer)[:, None]).sum())
                found.append((name, (request, choice), value))
    seconds = time.perf_counter() - start
    layers[layer] = whole
    return seconds, found


if __name__ == "__main__":
    main()
