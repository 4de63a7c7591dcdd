"""Times a run in llama.cpp, in turn with the original, both as GGUF files of the same type."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from swm.errors import ExperimentError
from swm.llama_cpp.client import VERSION, Client, llama_cpp
from swm.llama_cpp.kinds import check_kind
from swm.llama_cpp.write import export_gguf
from swm.models.locate import gguf_source, model_folder
from swm.progress import Progress, no_progress, share_of
from swm.stages.loading import calibration_of, conditions_for, load_original, load_run
from swm.workspace.files import check_space, home
from swm.workspace.runs import BASELINE, Run

TURNS = 7
PROMPT_TOKENS, NEW_TOKENS = 128, 64
THREADS = max(1, (os.cpu_count() or 1) // 2)  # waiting threads spin: with one for each core, the client disturbs them
TYPE = "Q8_0"  # half the size of 16 bits, with next to no loss


def time_in_llama_cpp(run: Run, kind: str = TYPE, progress: Progress = no_progress) -> dict[str, Any]:
    """Tokens per second of prompt and of generation in llama.cpp, and the file's perplexity on the calibration text.

    Both files are loaded anew in each turn, one after the other, so that a busy moment affects both. Written to
    llama_cpp.json of the run and of the original.

    Raises:
        SettingsError: if llama.cpp is not installed, or the type is unknown. ModelError: if it cannot run the model.
    """
    check_kind(kind)
    if run.is_baseline or not run.has_model:
        raise ExperimentError(f"Run {run.name} has no merged model to time. Merge it first.")
    folders = [model_folder(run.experiment.settings.model), run.model_folder]
    cache = home() / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    check_space(cache, sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")))
    start = time.time()
    source = gguf_source(run.experiment.settings.model)
    with llama_cpp() as client, tempfile.TemporaryDirectory(dir=cache) as kept:
        files = [Path(kept) / "original.gguf", Path(kept) / "run.gguf"]
        for place, (folder, file) in enumerate(zip(folders, files, strict=True)):
            part = share_of(progress, 0.15 * place, 0.15 * (place + 1))
            export_gguf(folder, file, kind, source=source, progress=part)
        original, tokenizer = load_original(run.experiment)
        rows = calibration_of(run.experiment, tokenizer)
        prompt = rows.flatten()[:PROMPT_TOKENS].tolist()
        speeds = _speeds(client, files, prompt, share_of(progress, 0.3, 0.9))
        models = [original, load_run(run)[0]]
        results = [
            {**speed, **_quality(client, file, model, rows[: max(1, 1024 // rows.shape[1])])}
            for speed, file, model in zip(speeds, files, models, strict=True)
        ]
    shared: dict[str, Any] = {
        "type": kind,
        "client": f"node-llama-cpp {VERSION}",
        "threads": THREADS,
        "turns": TURNS,
    }
    shared |= {"prompt_tokens": len(prompt), "new_tokens": NEW_TOKENS}
    shared |= {"conditions": conditions_for(run.experiment, original, start)}
    run.experiment.run(BASELINE).save("llama_cpp", {**results[0], **shared})
    data = {**results[1], "baseline": results[0], **_ratios(*speeds), **shared}
    run.save("llama_cpp", data)
    return data


def _speeds(client: Client, files: Sequence[Path], prompt: list[int], progress: Progress) -> list[dict[str, Any]]:
    rates: list[dict[str, list[float]]] = [{"prompt": [], "generation": []} for _ in files]
    for turn in range(TURNS):
        progress(turn, TURNS, f"turn {turn + 1} of {TURNS} in llama.cpp")
        for file, rate in zip(files, rates, strict=True):
            wanted = {"tokens": prompt, "count": NEW_TOKENS, "rounds": 1}
            answer = client.ask(file, speed=wanted, threads=THREADS)["speed"]
            for name, values in rate.items():
                values += answer[name]
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
def _quality(client: Client, file: Path, model: PreTrainedModel, rows: torch.Tensor) -> dict[str, float]:
    """Perplexity on the same tokens, of the file in llama.cpp and of the model that it was written from."""
    found = [value for text in client.logprobs(file, rows.tolist()) for value in text]
    tokens = rows.to(model.device)
    logits = model(tokens, use_cache=False).logits[:, :-1].float().log_softmax(-1)
    exact = logits.gather(2, tokens[:, 1:, None]).mean()
    return {"perplexity": math.exp(-statistics.fmean(found)), "perplexity_exact": math.exp(-float(exact))}
