"""Times a run in llama.cpp, in turn with the original, both as GGUF files of the same type."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from swm.disk.files import clean_up, home, temporary_folder
from swm.errors import ExperimentError, SettingsError
from swm.llama_cpp.client import Client, client_version, llama_cpp
from swm.llama_cpp.kinds import check_kind
from swm.llama_cpp.write import export_gguf
from swm.models.load import load_tokenizer
from swm.models.locate import gguf_source, model_folder
from swm.progress import Progress, no_progress, share_of
from swm.stages.loading import calibration_of, conditions_for, load_original, load_run
from swm.workspace.runs import BASELINE, Run

TURNS = 7
PROMPT_TOKENS, NEW_TOKENS = 128, 32
PERPLEXITY_TOKENS = 1024
TYPE = "Q8_0"  # half the size of 16 bits, with next to no loss


def time_in_llama_cpp(
    run: Run, kind: str = TYPE, new_tokens: int = NEW_TOKENS, progress: Progress = no_progress
) -> dict[str, Any]:
    """Tokens per second of prompt and of generation in llama.cpp, and the file's perplexity on the calibration text.

    Each turn loads both files again, one after the other, so that a busy moment affects both. Written to
    llama_cpp.json of the run and of the original.

    Raises:
        SettingsError: if llama.cpp is not installed, or the type is unknown. ModelError: if it cannot run the model.
    """
    check_kind(kind)
    if not 2 <= new_tokens <= 10_000:
        raise SettingsError(f"--tokens {new_tokens} is out of range. Choose 2 to 10,000.")
    if run.is_baseline or not run.has_model:
        raise ExperimentError(f"Run {run.name} has no merged model to time. Merge it first.")
    model = run.experiment.settings.model
    folders, source = [model_folder(model), run.model_folder], gguf_source(model)
    rows = calibration_of(run.experiment, load_tokenizer(model))
    prompt = rows.flatten()[:PROMPT_TOKENS].tolist()
    threads, start = threads_to_use(), time.time()
    clean_up(home() / "cache", older_than=24 * 3600)
    with llama_cpp() as client, temporary_folder(home() / "cache") as kept:
        files = [kept / "original.gguf", kept / "run.gguf"]
        for place, (folder, file) in enumerate(zip(folders, files, strict=True)):
            part = share_of(progress, 0.15 * place, 0.15 * (place + 1))
            export_gguf(folder, file, kind, source=source, progress=part)
        results = _speeds(client, files, {"tokens": prompt, "count": new_tokens}, threads, share_of(progress, 0.3, 0.8))
        last = share_of(progress, 0.8, 1)
        text = rows[: max(1, PERPLEXITY_TOKENS // rows.shape[1]), :PERPLEXITY_TOKENS]
        for place, (file, result) in enumerate(zip(files, results, strict=True)):
            last(place, 2, "perplexity")
            loaded = load_original(run.experiment)[0] if not place else load_run(run)[0]
            result |= _quality(client, file, loaded, text, threads)
            conditions = conditions_for(run.experiment, loaded, start)
            del loaded  # one model at a time
    shared = {"type": kind, "client": f"node-llama-cpp {client_version()}", "threads": threads, "turns": TURNS}
    shared |= {"prompt_tokens": len(prompt), "new_tokens": new_tokens, "perplexity_tokens": text.numel()}
    shared |= {"conditions": conditions}
    run.experiment.run(BASELINE).save("llama_cpp", {**results[0], **shared})
    data = {**results[1], "baseline": results[0], **_ratios(*results), **shared}
    run.save("llama_cpp", data)
    return data


def threads_to_use() -> int:
    """Half of the processors this process may use: waiting threads spin, and with all of them disturb one another."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // 2)


def _speeds(
    client: Client, files: Sequence[Path], work: dict[str, Any], threads: int, progress: Progress
) -> list[dict[str, Any]]:
    rates: list[dict[str, list[float]]] = [{"prompt": [], "generation": []} for _ in files]
    for turn in range(TURNS):
        progress(turn, TURNS, f"turn {turn + 1} of {TURNS} in llama.cpp")
        for file, rate in zip(files, rates, strict=True):
            answer = client.ask(file, speed=work, threads=threads)["speed"]
            for name, values in rate.items():
                values.append(answer[name])
    return [
        {
            "size_bytes": file.stat().st_size,
            "prompt_tokens_per_second": statistics.median(rate["prompt"]),
            "tokens_per_second": statistics.median(rate["generation"]),
            "rates": rate,
        }
        for file, rate in zip(files, rates, strict=True)
    ]


def _ratios(original: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """How many times the original's speed, turn by turn: median, smallest and largest."""
    ratios = {}
    for name, key in (("prompt_speedup", "prompt"), ("speedup", "generation")):
        turns = [mine / its for mine, its in zip(run["rates"][key], original["rates"][key], strict=True)]
        ratios[name] = {"value": statistics.median(turns), "low": min(turns), "high": max(turns)}
    return ratios


@torch.inference_mode()
def _quality(client: Client, file: Path, model: PreTrainedModel, text: Tensor, threads: int) -> dict[str, float]:
    """Perplexity on the same tokens, of the file in llama.cpp and of the model that it was written from."""
    in_file = [value for row in client.logprobs(file, text.tolist(), threads) for value in row]
    tokens = text.to(model.device)
    logprobs = model(tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    exact = logprobs.gather(2, tokens[:, 1:, None]).mean()
    return {"perplexity": math.exp(-statistics.fmean(in_file)), "perplexity_exact": math.exp(-float(exact))}
