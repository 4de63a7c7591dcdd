"""Heals a run."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.errors import ExperimentError, ModelError, TextError
from swm.evaluation.generation import check_generates
from swm.healing.lora import check_adapts, check_shared, recover
from swm.healing.own_answers import check_prompts, own_answers
from swm.healing.quantized import check_quantizes
from swm.healing.rows import training_rows
from swm.healing.training_speed import training_speed
from swm.merging.apply import apply_plan
from swm.merging.fit import check_fits
from swm.models.decoder import check_length
from swm.models.load import load_tokenizer
from swm.models.locate import load_config, model_folder, skeleton
from swm.models.processes import (
    agreed,
    check_sharding,
    first_alone,
    handed_out,
    is_first,
    is_sharded,
    on_its_own,
    world_size,
)
from swm.plan import trained_layers
from swm.progress import Progress, no_progress
from swm.settings import FIT_TOKENS, UNSAID, RecoverySettings
from swm.stages.loading import calibration_of, check_text, digest, load_original
from swm.stages.merge import check_not_baseline, cut_width, fitted_model, merged_model, save_run_model
from swm.texts.documents import recovery_examples, text_hash
from swm.texts.example import Example
from swm.workspace.estimate import reached_rates, trained_bytes
from swm.workspace.experiments import Experiment
from swm.workspace.files import check_space, content_hash, home
from swm.workspace.runs import Run

log = logging.getLogger(__name__)


def check_recovery(experiment: Experiment, settings: RecoverySettings) -> list[Example]:
    """Raise the errors that a recovery with these settings would raise, before anything is merged, loaded or deleted.

    Returns:
        The recovery examples.
    """
    check_text(experiment)
    name = experiment.settings.model
    config, tokenizer = load_config(name), load_tokenizer(name)
    check_length(config, settings.length)
    check_quantizes(settings)
    check_adapts(skeleton(config, name), settings)
    examples = recovery_examples(settings.texts, settings.seed)
    training_rows(tokenizer, examples, settings)
    if settings.answers == "original":
        check_prompts(examples)
    return examples


def check_recovery_text(run: Run, settings: RecoverySettings) -> None:
    """Raise TextError if the text of a finished recovery has changed."""
    old_hash = run.settings.get("recovery", {}).get("examples_hash")
    if old_hash and old_hash != _examples_hash(recovery_examples(settings.texts, settings.seed)):
        raise TextError(
            f"The recovery text {settings.texts} has changed since {run.name} was healed with it. Restore the text, "
            "pass --again to heal with the new one, or choose another run."
        )


def _examples_hash(examples: list[Example]) -> str:
    """Hash of the examples in their order; a recovery resumes only with the same ones."""
    return digest([(example.prompt, example.response) for example in examples])


def recover_run(run: Run, settings: RecoverySettings, progress: Progress = no_progress) -> dict[str, Any]:
    """Heal a merged model and replace it with the result; returns the training summary.

    Starts from the plan, so it can be repeated; with the same settings it resumes from its last checkpoint.
    """
    check_not_baseline(run, "recovered")
    if run.stage == "planned":
        raise ExperimentError(f"Run {run.name} is not merged yet. Merge it first.")
    folder = run.folder / "recovery"
    check_sharding()
    check_shared(settings)
    examples = check_recovery(run.experiment, settings)
    tokenizer = load_tokenizer(run.experiment.settings.model)
    trained = trained_bytes(settings, run.plan, run.experiment.model_facts)
    check_space(run.folder, run.settings["merge"]["size_bytes"] + 3 * trained)  # two checkpoints and one being written
    ids = calibration_of(run.experiment, tokenizer)  # read now: the text may change during training
    requested = {**asdict(settings), "text_hash": text_hash(settings.texts, "recovery")}
    requested["examples_hash"] = _examples_hash(examples)
    model = _original(run, settings, progress)
    with first_alone():
        _begin(run, settings, requested)
    loss_text = ""
    if is_first():
        run.add_event(stage="recover", step=run.checkpoint_step(), steps=settings.steps, begun=True)
    start = _start(run, model, tokenizer, examples, settings, progress)
    del model  # training needs the merged one alone

    def step(done: int, steps: int, numbers: dict[str, float]) -> None:
        nonlocal loss_text
        if not is_first():
            return
        run.add_event(stage="recover", step=done, steps=steps, **numbers)
        loss_text = f"loss {numbers['loss']:.3f}" if "loss" in numbers else loss_text
        progress(done, steps, loss_text)

    layers = trained_layers(run.plan, settings.adapt)
    behind = [(own, window.last) for own, window in enumerate(run.plan.kept_layers()) if len(window) > 1]
    healed, summary = recover(
        start.merged,
        tokenizer,
        start.examples,
        settings,
        folder,
        step,
        original=start.original,
        layers=layers,
        behind=behind,
    )
    summary["repaired"] = start.repaired
    if not is_first():
        return summary
    recovery = {**requested, **summary, "seconds": round(healing_seconds(run.events(), time.time()), 1)}
    recovery |= {"processes": world_size()} if world_size() > 1 else {}
    _keep_speed(run, recovery)
    save_run_model(run, healed, tokenizer, ids, {"recovery": recovery}, "drop" if run.stage == "recovered" else "aside")
    return summary


def _begin(run: Run, settings: RecoverySettings, requested: dict[str, Any]) -> None:
    """Set aside what a recovery with other settings or another text left, and note what this one is asked for."""
    started = run.settings.get("recovery_started") or {}
    started = {**UNSAID, **started} if started else {}
    if not started or any(requested.get(name) != value for name, value in started.items()):
        if all(started.get(name) == value for name, value in asdict(settings).items()):
            log.warning("The recovery text %s has changed since healing began: starting over.", settings.texts)
        run.keep_adapter()
        shutil.rmtree(run.folder / "recovery", ignore_errors=True)  # before the settings it was started with go
        run.clear_events()
        run.remember(recovery_started=requested)


@dataclass(frozen=True)
class _Start:
    """What training starts from; `repaired` is the outcome of the fit, and `original` whom to learn from."""

    merged: PreTrainedModel
    examples: list[Example]
    repaired: str
    original: PreTrainedModel | None = None


def _original(run: Run, settings: RecoverySettings, progress: Progress) -> PreTrainedModel | None:
    """The original, loaded before anything is deleted; with FSDP in the first process alone."""
    progress(0, settings.steps, "loading the model")
    if not is_sharded():
        return load_original(run.experiment)[0]
    if not is_first():
        return None
    with on_its_own():
        return load_original(run.experiment, "cpu")[0]


def _start(
    run: Run,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    progress: Progress,
) -> _Start:
    """The merged model and its examples; with FSDP, the first process makes them and hands them out."""
    made = None
    if model:
        with on_its_own() if is_sharded() else nullcontext():
            answered = _answered(run, model, tokenizer, examples, settings, progress)
            merged, repaired = _repaired(run, model, tokenizer, answered, settings, progress)
        made = _Start(merged, answered, repaired, model if settings.target != "text" else None)
    if made and not is_sharded():
        return made
    merged = handed_out(made.merged if made else None)
    examples, repaired = agreed((made.examples, made.repaired) if made else (examples, ""))
    return _Start(merged, examples, repaired)


def _answered(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    progress: Progress,
) -> list[Example]:
    """The examples to train on; with the original's own answers, which are kept by the content of its weights."""
    if settings.answers == "given":
        return examples
    check_generates(model, torch.tensor([[0, 0]]))
    weights = content_hash(model_folder(run.experiment.settings.model), ("*.safetensors", "*.json", "*.model", "*.txt"))
    key = digest(weights, str(model.dtype), version("transformers"))
    store = home() / "cache" / "answers" / f"{key}.jsonl"

    def on_batch(done: int, total: int) -> None:
        progress(done, total, f"the original model answers, {done:,} of {total:,}")

    with first_alone():  # the others find the answers kept
        answered = own_answers(model, tokenizer, examples, settings, store, on_batch)
    return agreed(answered)


def _keep_speed(run: Run, recovery: dict[str, Any]) -> None:
    """Let later estimates know how fast this machine trains."""
    speed = training_speed(run.events(), recovery)
    share = run.plan.worth_layers / run.experiment.layer_count
    run.experiment.raise_rates(reached_rates(share, trained_per_second=speed))


def healing_seconds(events: Sequence[dict[str, Any]], now: float) -> float:
    """Total seconds of all healing sessions; a killed session counts up to its last event."""
    sessions: list[list[float]] = []
    for event in events:
        if event.get("stage") == "recover":
            if event.get("begun") or not sessions:
                sessions.append([])
            sessions[-1].append(event["time"])
    return sum(times[-1] - times[0] for times in sessions[:-1]) + (now - sessions[-1][0] if sessions else 0.0)


def _repaired(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    progress: Progress,
) -> tuple[PreTrainedModel, str]:
    """The merged model to train, its layers fitted on the training text, and the outcome of the fit."""
    if settings.repair == "none" or not run.plan.windows:
        return merged_model(run.experiment, model, tokenizer, run.plan, progress), "none"
    packed = training_rows(tokenizer, examples, replace(settings, loss_on="text"))[settings.held_out :]
    count = -(-FIT_TOKENS // settings.length)
    tokens = torch.tensor([row["input_ids"] for row in packed[:count]])
    try:
        check_fits(model)
        merged, how = fitted_model(model, run.plan, tokens, progress), "fit"
    except ModelError as error:  # layers with an end of their own: training alone also heals
        merged, how = apply_plan(model, run.plan), f"none: {error}"
    return cut_width(run.experiment, merged, tokenizer, run.plan, progress), how
