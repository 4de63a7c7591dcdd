"""What a healing starts from: the merged model, its layers fitted where asked, and the examples."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.disk.files import content_hash, home
from swm.errors import ModelError, TextError
from swm.evaluation.generation import check_generates
from swm.healing.own_answers import own_answers
from swm.healing.rows import training_rows
from swm.merging.apply import apply_plan
from swm.merging.merged_layer import MergedLayer
from swm.merging.scale import folded
from swm.merging.stream import check_streams
from swm.models.load import fast_format, save_model
from swm.models.locate import model_folder
from swm.models.processes import agreed, first_alone, handed_out, is_first, is_sharded, on_its_own
from swm.plan import Window
from swm.progress import Progress
from swm.registry import MERGE_RULES
from swm.settings import FIT_TOKENS, RecoverySettings
from swm.stages.loading import digest, fit_tokens_of, load_original
from swm.stages.merge import cut_width, fitted, merged_model, streamed
from swm.texts.example import Example
from swm.workspace.runs import Run

REPAIRED = "recovery_base_repaired"  # in run.json: how the model that four-bit weights are made from was fitted


@dataclass(frozen=True)
class Start:
    """What training starts from; `repaired` is the outcome of the fit, and `original` whom to learn from."""

    merged: PreTrainedModel
    examples: list[Example]
    repaired: str
    original: PreTrainedModel | None = None


def original_of(run: Run, settings: RecoverySettings, progress: Progress) -> PreTrainedModel | None:
    """The original, loaded before anything is deleted; with FSDP in the first process alone."""
    progress(0, 0, "loading the model")
    if not is_sharded():
        return load_original(run.experiment)[0]
    if not is_first():
        return None
    with on_its_own():
        return load_original(run.experiment, "cpu")[0]


def start_of(
    run: Run,
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    progress: Progress,
) -> Start:
    """The merged model and its examples; with FSDP, the first process makes them and hands them out."""
    made = None
    if model:
        with on_its_own() if is_sharded() else nullcontext():
            own = answered(run, model, tokenizer, examples, settings, progress)
            merged, repaired = _repaired(run, model, tokenizer, own, settings, progress)
        made = Start(merged, own, repaired, model if settings.target != "text" else None)
    if made and not is_sharded():
        return made
    merged = handed_out(made.merged if made else None)
    examples, repaired = agreed((made.examples, made.repaired) if made else (examples, ""))
    return Start(merged, examples, repaired)


def answered(
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
    weights = content_hash(
        model_folder(run.experiment.settings.model, run.experiment.settings.dtype),
        ("*.safetensors", "*.json", "*.model", "*.txt"),
    )
    fast = fast_format(model)
    key = digest(weights, "read in bfloat16" if fast else str(model.dtype), version("transformers"))
    store = home() / "cache" / "answers" / f"{key}.jsonl"

    def on_batch(done: int, total: int) -> None:
        progress(done, total, f"the original model answers, {done:,} of {total:,}")

    with first_alone():  # the others find the answers kept
        written = own_answers(model, tokenizer, examples, settings, store, on_batch, fast)
    return agreed(written)


def _repaired(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    progress: Progress,
) -> tuple[PreTrainedModel, str]:
    """The merged model to train, its layers fitted on the training text, and the outcome of the fit."""
    made, how = _repairs(run, model, tokenizer, examples, settings, progress)
    if made is None:
        return merged_model(run.experiment, model, tokenizer, run.plan, progress), how
    merged = apply_plan(model, run.plan, made.__getitem__)
    return cut_width(run.experiment, merged, tokenizer, run.plan, progress), how


def _repairs(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    progress: Progress,
) -> tuple[dict[Window, MergedLayer] | None, str]:
    """The merged layers, fitted on the training text, and the outcome; None if they are not fitted."""
    if settings.repair == "none" or not run.plan.windows:
        return None, "none"
    count = -(-FIT_TOKENS // settings.length)
    try:
        packed = training_rows(tokenizer, examples, replace(settings, loss_on="text"))[settings.held_out :]
        tokens = torch.tensor([row["input_ids"] for row in packed[:count]])
        return fitted(model, run.plan, tokens, progress, settings.repair), settings.repair
    except (ModelError, TextError) as error:  # layers of a form of their own, short answers: training alone also heals
        return None, f"none: {error}"


def write_start(
    run: Run,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    progress: Progress,
) -> str:
    """Write the merged model, its layers fitted on the training text, to a folder; returns the outcome of the fit.

    From disk to disk if possible (`starts_from_disk`): then the merged model is never in memory. The outcome is noted
    in run.json before the folder appears.

    Args:
        model: the original; its weights may be spread over devices and disk if it starts from there.
    """

    def note(how: str) -> None:
        run.remember(**{REPAIRED: how})

    if starts_from_disk(run):
        made, how = _repairs(run, model, tokenizer, examples, settings, progress)
        if made is None and MERGE_RULES[run.plan.rule].needs_text and run.plan.windows:
            made = fitted(model, run.plan, fit_tokens_of(run.experiment, tokenizer), progress, run.plan.rule)
        changed = made and folded(model, run.plan, made)
        streamed(run, run.plan, folder, progress, lambda *written: note(how), changed, required=True)
        return how
    merged, how = _repaired(run, model, tokenizer, examples, settings, progress)
    note(how)
    save_model(merged, tokenizer, folder)
    return how


def starts_from_disk(run: Run) -> bool:
    """Whether the merged model can be written without having been in memory."""
    if run.plan.width.ratio:
        return False
    try:
        check_streams(run.experiment.settings.model, run.experiment.settings.dtype)
    except ModelError:
        return False
    return True
