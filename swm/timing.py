"""Latency, throughput and memory of generation. Two models are timed in turn, so that a busy moment hits both."""

from __future__ import annotations

import ctypes
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from swm.decoder import find_decoder, parameter_count, size_bytes
from swm.errors import ModelError, NoCacheError, first_line
from swm.machine import check_memory, is_out_of_memory
from swm.merge import MergedLayer, apply_plan
from swm.models import bfloat16_is_faster, pick_device
from swm.plan import MergePlan, Window
from swm.saving import quiet_transformers
from swm.sources import load_config, skeleton

WARM_UP = 2
OnProgress = Callable[[int, int, str], None]


def time_models(
    models: Sequence[PreTrainedModel],
    prompt: Tensor,
    new_tokens: int = 32,
    repetitions: int = 7,
    on_progress: OnProgress | None = None,
) -> list[dict[str, Any]]:
    """How fast each model generates, measured in turn: once each, then again.

    Args:
        models: in eval mode, all on one device.
        prompt: ids, shape (1, length).
        new_tokens: generated each time, greedily, with KV cache; an end-of-text token does not stop it.

    Returns:
        For each model: `latency_ms` (median of a whole generation), `latency_p10_ms`, `latency_p90_ms`,
        `prefill_ms` (median, the prompt alone), `tokens_per_second` (new tokens after the first, by the median decode
        time), `peak_memory_bytes` (weights and what generation adds), and for all but the first `speedup`: median of
        the ratios first / this one in each turn, with `low` and `high` (smallest and largest ratio). Conditions:
        `prompt_tokens`, `new_tokens`, `repetitions`, `warm_up`, `threads`, `device`, `dtype`.
    """
    for model in models:
        check_keeps_cache(model, prompt)
    latencies: list[list[float]] = [[] for _ in models]
    prefills: list[list[float]] = [[] for _ in models]
    peaks = [0] * len(models)
    total = WARM_UP + repetitions
    for turn in range(total):
        for index, model in enumerate(models):
            with peak_memory(model) as peak:
                prefill, latency = _generation_seconds(model, prompt, new_tokens)
            if turn >= WARM_UP:
                prefills[index].append(prefill)
                latencies[index].append(latency)
                peaks[index] = max(peaks[index], peak[0])
        if on_progress:
            on_progress(turn + 1, total, "generating")
    return [
        _summary(model, prompt, new_tokens, prefills[i], latencies[i], peaks[i], latencies[0] if i else None)
        for i, model in enumerate(models)
    ]


def throughput(
    models: Sequence[PreTrainedModel], prompt: Tensor, batches: Sequence[int] = (1, 4, 16), new_tokens: int = 12
) -> list[dict[str, float]]:
    """Generated tokens per second of each model by batch size, the models in turn, the better of two."""
    found: list[dict[str, float]] = [{} for _ in models]
    for batch in batches:
        ids = prompt.repeat(batch, 1)
        for _ in range(2):
            for model, rates in zip(models, found, strict=True):
                prefill, latency = _generation_seconds(model, ids, new_tokens)
                rate = batch * (new_tokens - 1) / (latency - prefill)
                rates[str(batch)] = max(rate, rates.get(str(batch), 0.0))
    return found


def _summary(
    model: PreTrainedModel,
    prompt: Tensor,
    new_tokens: int,
    prefills: list[float],
    latencies: list[float],
    peak: int,
    reference: list[float] | None,
) -> dict[str, Any]:
    decode = statistics.median(latency - prefill for latency, prefill in zip(latencies, prefills, strict=True))
    ordered = sorted(latencies)
    summary = {
        "latency_ms": 1000 * statistics.median(latencies),
        "latency_p10_ms": 1000 * ordered[math.floor(0.1 * (len(ordered) - 1))],
        "latency_p90_ms": 1000 * ordered[math.ceil(0.9 * (len(ordered) - 1))],
        "prefill_ms": 1000 * statistics.median(prefills),
        "tokens_per_second": (new_tokens - 1) / decode,
        "peak_memory_bytes": size_bytes(model) + peak,
        "prompt_tokens": prompt.shape[1],
        "new_tokens": new_tokens,
        "repetitions": len(latencies),
        "warm_up": WARM_UP,
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if reference:
        ratios = [base / own for base, own in zip(reference, latencies, strict=True)]
        summary["speedup"] = {"value": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return summary


@torch.inference_mode()
def decode_cost(model: PreTrainedModel, prompt: Tensor, new_tokens: int = 24) -> dict[str, Any]:
    """Where the time of a generated token goes: `layers_ms` in all decoder layers, `rest_ms` in embedding, norm, head.

    Args:
        prompt: ids, shape (1, length).

    Medians over `new_tokens` - 1 tokens, after the same number to warm up. What a plan's model will cost follows from
    it: layers cost alike. Also how many tokens per second a forward pass reads, in the model's format and in the one
    that training would take: for estimates.
    """
    check_keeps_cache(model, prompt)
    layers = find_decoder(model).layers
    with _seconds_in_layers(model) as in_layers:
        costs: list[tuple[float, float]] = []
        for _ in range(2):
            costs, last = [], time.perf_counter()
            for _ in generated_tokens(model, prompt, new_tokens):
                _wait(model)
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
    """`decode_cost` of a model that need not be here: one layer of its shape, with random weights, is timed on this
    machine and counted as often as the model has layers. None if the model keeps no cache to generate from.

    Args:
        name: a model as in `models.load_model`; its config is enough.

    Memory: one layer, embedding and head.
    """
    config = load_config(name)
    whole = skeleton(config, name)
    count = len(find_decoder(whole).layers)
    first = MergePlan(count, (Window(0, count - 1),) if count > 1 else (), "keep_first")
    one = apply_plan(whole, first, lambda window: MergedLayer(0))
    form = one.dtype if dtype == "auto" else getattr(torch, dtype)
    device = pick_device("auto")
    check_memory(f"Timing a layer of {name}", 2 * parameter_count(one) * form.itemsize)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(one.config, dtype=form).eval()
    prompt = torch.randint(0, min(1000, one.config.get_text_config().vocab_size), (1, prompt_tokens))
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
    """One number that grows by the seconds that the decoder's layers take."""
    spent, began = [0.0], [0.0]

    def before(*_: Any) -> None:
        _wait(model)
        began[0] = time.perf_counter()

    def after(*_: Any) -> None:
        _wait(model)
        spent[0] += time.perf_counter() - began[0]

    layers = find_decoder(model).layers
    handles = [
        h for layer in layers for h in (layer.register_forward_pre_hook(before), layer.register_forward_hook(after))
    ]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def _forward_seconds(model: PreTrainedModel, prompt: Tensor, fast: bool, texts: int = 8) -> tuple[float, float]:
    """Seconds for each token of a forward pass with logits, in the layers and besides; the better of two.

    Args:
        fast: in bfloat16, as when training.
    """
    ids = prompt.to(model.device).repeat(texts, 1)
    found = []
    with torch.autocast(model.device.type, torch.bfloat16, enabled=fast), _seconds_in_layers(model) as in_layers:
        for _ in range(2):
            in_layers[0], start = 0.0, time.perf_counter()
            model(ids, use_cache=False)
            _wait(model)
            found.append((time.perf_counter() - start, in_layers[0]))
    whole, layers = min(found)
    return layers / ids.numel(), (whole - layers) / ids.numel()


@torch.inference_mode()
def _generation_seconds(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds until the first token, and until the last."""
    start = time.perf_counter()
    times: list[float] = []
    for _ in generated_tokens(model, prompt, new_tokens):
        _wait(model)
        times.append(time.perf_counter() - start)
    return times[0], times[-1]


def generated_tokens(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> Iterator[Tensor]:
    """Greedy continuation of a prompt, one token at a time, shape (1, 1) each; with KV cache, never stopping early."""
    result: Any = model(prompt.to(model.device), use_cache=True, logits_to_keep=1)
    for step in range(new_tokens):
        token = result.logits[:, -1:].argmax(-1)
        yield token
        if step + 1 < new_tokens:
            kept = _kept(result)
            assert kept is not None  # see check_keeps_cache
            result = model(token, use_cache=True, logits_to_keep=1, **{kept: result[kept]})


def keeps_cache(model: PreTrainedModel, prompt: Tensor) -> bool:
    """Whether the model gives back what it has read, so that the next token needs no second reading."""
    with torch.inference_mode():
        return _kept(model(prompt.to(model.device), use_cache=True)) is not None


@torch.inference_mode()
def check_generates(model: PreTrainedModel, prompt: Tensor) -> None:
    """Raise ModelError if transformers cannot generate with the model, as when no layer is left that has attention."""
    try:
        with quiet_transformers():
            model.generate(prompt.to(model.device), max_new_tokens=2, do_sample=False)  # type: ignore[operator]
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"The {type(model).__name__} cannot generate text: {first_line(error)} Of layers of several kinds, "
            "keep one of each kind."
        ) from None


def check_keeps_cache(model: PreTrainedModel, prompt: Tensor) -> None:
    """Raise ModelError if the model cannot generate token by token from what it has kept."""
    if not keeps_cache(model, prompt):
        raise NoCacheError(
            f"{type(model).__name__} returns no cache (keys and values, or a state), so its generation speed cannot be "
            "measured. Compare size and scores only."
        )


def _kept(result: Any) -> str | None:
    """By what name the result has the cache."""
    names = ("cache", "past_key_values", "cache_params")
    return next((name for name in names if name in result and result[name] is not None), None)


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


@contextmanager
def peak_memory(model: PreTrainedModel) -> Iterator[list[int]]:
    """A list whose one entry is, after the block, how many bytes it took beyond those in use before."""
    peak = [0]
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(model.device) - before
        return
    _return_freed_memory()
    process, stop = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _return_freed_memory() -> None:
    """Give freed memory back to the system, else a second generation seems to need none. glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
