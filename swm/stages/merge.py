"""Merges a run's windows and saves the smaller model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.disk.files import check_space
from swm.disk.machine import free_memory_bytes
from swm.errors import ExperimentError, ModelError, SettingsError
from swm.evaluation.generation import check_generates
from swm.merging.apply import apply_plan
from swm.merging.fit import check_how, fitted_layers, solving_bytes
from swm.merging.merged_layer import MergedLayer
from swm.merging.scale import folded
from swm.merging.stream import check_streams, stream_merge
from swm.merging.width import prune_width
from swm.models.decoder import parameter_count, size_bytes
from swm.models.load import fast_format, save_model
from swm.models.offload import let_go
from swm.plan import MergePlan, Window
from swm.progress import Progress, no_progress
from swm.registry import MERGE_RULES
from swm.stages.loading import calibration_of, check_text, fit_tokens_of, load_original
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run


def merge_run(
    run: Run,
    progress: Progress = no_progress,
    stream: bool | None = None,
    entries: dict[str, Any] | None = None,
) -> None:
    """Apply a run's plan, save the smaller model and check that it reloads with the same logits.

    A recovered run is merged again from its plan; its recovery and scores are deleted once the new model has replaced
    the old one.

    Args:
        stream: merge from disk to disk, see `swm.merging.stream`; rules that need text then read layers from disk for
            which there is no room. None does so only if the model and its merged copy would not fit into memory.
        entries: of another plan to replace the run's, as from `Experiment.plan_entries`.
    """
    check_not_baseline(run, "merged")
    check_text(run.experiment)  # a streamed merge reads no text
    entries = entries or {}
    plan = MergePlan.from_dict(entries["plan"]) if entries else run.plan
    promise = partial(_promise_merge, run, entries, time.time())
    if _streams(run, plan, stream) and streamed(run, plan, run.model_folder, progress, promise, None, stream is True):
        run.settle()
        return
    progress(0, 0, "loading the model")
    model, tokenizer = load_original(run.experiment)
    check_space(run.folder, size_bytes(model))
    progress(0, 0, "merging")
    ids = calibration_of(run.experiment, tokenizer)
    merged = merged_model(run.experiment, model, tokenizer, plan, progress)
    check_generates(merged, ids[:1, :8], model)
    facts = {"parameters": parameter_count(merged), "size_bytes": size_bytes(merged)}
    progress(0, 0, "saving and reloading")
    save_model(merged, tokenizer, run.model_folder, ids, lambda new: promise(new, facts))
    run.settle()


def _streams(run: Run, plan: MergePlan, requested: bool | None) -> bool:
    """Whether to merge from disk to disk.

    Raises:
        SettingsError: if `requested`, but the plan cuts width.
    """
    if requested and plan.width.ratio:
        raise SettingsError(
            "--stream works layer by layer, but a width cut needs the model in memory. Omit --stream, or the width cut."
        )
    needed = 2.2 * run.experiment.model_facts["size_bytes"]  # the model, and the merged one reloaded
    return not plan.width.ratio and (needed > free_memory_bytes() if requested is None else requested)


def streamed(
    run: Run,
    plan: MergePlan,
    folder: Path,
    progress: Progress,
    on_written: Callable[[Path, dict[str, int]], None] | None = None,
    made: Mapping[Window, MergedLayer] | None = None,
    required: bool = False,
) -> bool:
    """Merge from disk to disk; False if the model's files do not allow it and it is not `required`.

    Args:
        made: the merged layers, see `stream_merge`; rules that need text otherwise make them on the experiment's kind.
    """
    report = lambda done, total: progress(done, total, "merging from disk to disk")  # noqa: E731
    settings = run.experiment.settings
    try:
        skeleton, _ = check_streams(settings.model, settings.dtype)
    except ModelError:
        if required:
            raise
        return False
    if made is None and plan.windows and MERGE_RULES[plan.rule].needs_text:
        progress(0, 0, "loading the model")
        spare = solving_bytes(skeleton) if plan.rule == "fit" else 0
        model, tokenizer = load_original(run.experiment, offload=True, spare=spare)
        layers = fitted(model, plan, fit_tokens_of(run.experiment, tokenizer), progress, plan.rule)
        made = folded(model, plan, layers)
        del model
        let_go()
    stream_merge(settings.model, plan, folder, settings.dtype, report, on_written, made)
    return True


def _promise_merge(run: Run, entries: dict[str, Any], start: float, folder: Path, facts: dict[str, int]) -> None:
    seconds = round(time.time() - start, 1)
    run.promise(folder, {**entries, "merge": {**facts, "seconds": seconds}}, "forget")


def merged_model(
    experiment: Experiment,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: MergePlan,
    progress: Progress = no_progress,
) -> PreTrainedModel:
    """The model after the plan; rules `fit` and `scale` use the experiment's kind of text."""
    if not MERGE_RULES[plan.rule].needs_text or not plan.windows:
        merged = apply_plan(model, plan)
    else:
        made = fitted(model, plan, fit_tokens_of(experiment, tokenizer), progress, plan.rule)
        merged = apply_plan(model, plan, made.__getitem__)
    return cut_width(experiment, merged, tokenizer, plan, progress)


def cut_width(
    experiment: Experiment,
    merged: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: MergePlan,
    progress: Progress,
) -> PreTrainedModel:
    """The merged model after the plan's width cut."""
    if not plan.width.ratio:
        return merged
    report = lambda done, total: progress(done, total, f"cutting width, text {done} of {total}")  # noqa: E731
    return prune_width(merged, plan.width, fit_tokens_of(experiment, tokenizer), report)


def fitted(
    model: PreTrainedModel, plan: MergePlan, tokens: Tensor, progress: Progress, how: str
) -> dict[Window, MergedLayer]:
    """The merged layers of a plan, fitted on a text; in bfloat16 where that is faster (see `fitted_layers`).

    Args:
        how: "fit" or "scale".

    Raises:
        NoFitError, NoScaleError: at once, if that cannot be done with the model's layers.
    """
    check_how(model, how)
    doing = "fitting" if how == "fit" else "rescaling"
    report = lambda done, total: progress(done, total, f"{doing} merged layers, {done} of {total}")  # noqa: E731
    return fitted_layers(model, plan, tokens, report, fast_format(model), how)


def save_run_model(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    settings: dict[str, Any],
    scores: str,
) -> None:
    """Replace the run's model and update run.json with `settings`; see `Run.promise`.

    Args:
        ids: token ids of any text, to compare the reloaded model with the saved one.
    """
    save_model(model, tokenizer, run.model_folder, ids, lambda new: run.promise(new, settings, scores))
    run.settle()


def check_not_baseline(run: Run, verb: str) -> None:
    """Raise ExperimentError if the run is the original model."""
    if run.is_baseline:
        raise ExperimentError(f"The baseline is the original model and cannot be {verb}. Name another run.")
