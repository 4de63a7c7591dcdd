"""Latency, throughput and memory of generation. Models are timed in turn, so that a busy moment affects all of them."""

from __future__ import annotations

import ctypes
import math
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from swm.evaluation.generation import check_keeps_cache, generated_tokens, wait_for_device
from swm.models.decoder import size_bytes
from swm.progress import Progress

WARM_UP = 2


def time_models(
    models: Sequence[PreTrainedModel],
    prompt: Tensor,
    new_tokens: int = 32,
    repetitions: int = 7,
    on_progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Generation speed of each model; the models take turns, one generation each per turn.

    Args:
        models: in eval mode, all on one device.
        prompt: ids, shape (1, length).
        new_tokens: generated each time, greedily, with KV cache; an end-of-text token does not stop it.

    Returns:
        For each model: `latency_ms` (median of a whole generation), `latency_p10_ms`, `latency_p90_ms`,
        `prefill_ms` (median, the prompt alone), `tokens_per_second` (new tokens after the first, over the median decode
        time), `peak_memory_bytes` (weights plus what generation adds), and for all but the first model `speedup`: the
        median over turns of the first model's latency divided by this one's, with `low` and `high` (smallest and
        largest ratio). Conditions: `prompt_tokens`, `new_tokens`, `repetitions`, `warm_up`, `threads`, `device`,
        `dtype`.
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
    """Generated tokens per second of each model by batch size; the models take turns, the better of two counts."""
    rates_by_model: list[dict[str, float]] = [{} for _ in models]
    for batch in batches:
        ids = prompt.repeat(batch, 1)
        for _ in range(2):
            for model, rates in zip(models, rates_by_model, strict=True):
                prefill, latency = _generation_seconds(model, ids, new_tokens)
                rate = batch * (new_tokens - 1) / (latency - prefill)
                rates[str(batch)] = max(rate, rates.get(str(batch), 0.0))
    return rates_by_model


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
def _generation_seconds(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and to the last."""
    start = time.perf_counter()
    times: list[float] = []
    for _ in generated_tokens(model, prompt, new_tokens):
        wait_for_device(model)
        times.append(time.perf_counter() - start)
    return times[0], times[-1]


@contextmanager
def peak_memory(model: PreTrainedModel) -> Iterator[list[int]]:
    """A list whose single entry holds, after the block, its peak memory in bytes beyond what was in use before."""
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
    """Return freed memory to the system, otherwise a second generation seems to need none. glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
