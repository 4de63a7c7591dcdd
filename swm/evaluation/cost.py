"""How the time per generated token splits between the layers and the rest of the model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from swm.disk.machine import check_memory
from swm.evaluation.generation import check_keeps_cache, generated_tokens, keeps_cache, wait_for_device
from swm.merging.apply import apply_plan
from swm.merging.merged_layer import MergedLayer
from swm.models.decoder import find_decoder, parameter_count
from swm.models.hooks import hooked
from swm.models.load import bfloat16_is_faster, pick_device
from swm.models.locate import config_alone, skeleton
from swm.plan import MergePlan, Window

AGREED, MOST_PASSES = 1.1, 6  # passes are repeated until the two fastest differ by less than this factor


@torch.inference_mode()
def decode_cost(model: PreTrainedModel, prompt: Tensor, new_tokens: int = 24) -> dict[str, Any]:
    """Time per generated token: `layers_ms` in all decoder layers, `rest_ms` in embedding, final norm and output head.

    Args:
        prompt: ids, shape (1, length).

    Medians over `new_tokens` - 1 tokens, after as many tokens of warm-up. This predicts the cost of any plan's model,
    since all layers cost about the same. For estimates, also measures the tokens per second of a forward pass, in the
    model's precision and in the precision used for training.
    """
    check_keeps_cache(model, prompt)
    layers = find_decoder(model).layers
    with _seconds_in_layers(model) as in_layers:
        costs: list[tuple[float, float]] = []
        for _ in range(2):
            costs, last = [], time.perf_counter()
            for _ in generated_tokens(model, prompt, new_tokens):
                wait_for_device(model)
                now = time.perf_counter()
                costs.append((in_layers[0], now - last - in_layers[0]))
                in_layers[0], last = 0.0, time.perf_counter()
    layers_ms, rest_ms = (1000 * statistics.median(values) for values in zip(*costs[1:], strict=True))
    return {
        "layers_ms": layers_ms,
        "rest_ms": rest_ms,
        "layers": len(layers),
        "prompt_tokens": prompt.shape[1],
        "forward_tokens_per_second": 1 / sum(_forward_seconds(model, prompt, fast=False)),
        "training_tokens_per_second": 1 / sum(_forward_seconds(model, prompt, bfloat16_is_faster(model.device))),
    }


def config_cost(name: str, dtype: str = "auto", prompt_tokens: int = 64) -> dict[str, Any] | None:
    """`decode_cost` of a model, estimated from its config alone: no weights needed. None if it returns no cache.

    Times one layer of the model's shape, with random weights, on this machine and multiplies by the number of layers.

    Args:
        name: a model as in `load_model`; its config is enough.

    Memory: one layer, embedding and output head.
    """
    config = config_alone(name)
    whole = skeleton(config, name)
    count = len(find_decoder(whole).layers)
    first = MergePlan(count, (Window(0, count - 1),) if count > 1 else (), "keep_first")
    single = apply_plan(whole, first, lambda window: MergedLayer(0))  # the model with its first layer only
    precision = single.dtype if dtype == "auto" else getattr(torch, dtype)
    device = pick_device("auto")
    check_memory(f"Timing a layer of {name}", 2 * parameter_count(single) * precision.itemsize)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(single.config, dtype=precision).eval()
    prompt = torch.randint(0, min(1000, single.config.get_text_config().vocab_size), (1, prompt_tokens))
    if not keeps_cache(model, prompt):
        return None
    cost = decode_cost(model, prompt)
    rates = {}
    for rate, fast in (("forward", False), ("training", bfloat16_is_faster(device))):
        layer, rest = _forward_seconds(model, prompt, fast)
        rates[f"{rate}_tokens_per_second"] = 1 / (count * layer + rest)
        rates[f"{rate}_layer_us"] = 1e6 * layer
    return {**cost, **rates, "layers_ms": count * cost["layers_ms"], "layers": count}


@contextmanager
def _seconds_in_layers(model: PreTrainedModel) -> Iterator[list[float]]:
    """A list with one number: the seconds spent in the decoder's layers so far."""
    spent, began = [0.0], [0.0]

    def before(*_: Any) -> None:
        wait_for_device(model)
        began[0] = time.perf_counter()

    def after(*_: Any) -> None:
        wait_for_device(model)
        spent[0] += time.perf_counter() - began[0]

    layers = find_decoder(model).layers
    with (
        hooked(layer.register_forward_pre_hook(before) for layer in layers),
        hooked(layer.register_forward_hook(after) for layer in layers),
    ):
        yield spent


@contextmanager
def tokens_read(model: PreTrainedModel) -> Iterator[list[int]]:
    """A list with one number: the tokens that the model reads in the block, padding included."""
    read = [0]

    def count(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", args[0] if args else None)
        read[0] += 0 if ids is None else ids.numel()

    with hooked([model.register_forward_pre_hook(count, with_kwargs=True)]):
        yield read


@torch.inference_mode()
def _forward_seconds(model: PreTrainedModel, prompt: Tensor, fast: bool, texts: int = 8) -> tuple[float, float]:
    """Seconds per token of a forward pass with logits, in the layers and in the rest.

    The fastest of at least two passes, repeated until the two fastest agree: other programs can only slow it down.

    Args:
        fast: in bfloat16, as in training.
    """
    ids = prompt.to(model.device).repeat(texts, 1)
    passes: list[tuple[float, float]] = []
    with torch.autocast(model.device.type, torch.bfloat16, enabled=fast), _seconds_in_layers(model) as in_layers:
        while len(passes) < 2 or (passes[1][0] > AGREED * passes[0][0] and len(passes) < MOST_PASSES):
            in_layers[0], start = 0.0, time.perf_counter()
            model(ids, use_cache=False)
            wait_for_device(model)
            passes = sorted([*passes, (time.perf_counter() - start, in_layers[0])])
    whole, layers = passes[0]
    return layers / ids.numel(), (whole - layers) / ids.numel()
