"""Heals a run."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.disk.files import check_space, disk_errors, replaced_folder
from swm.errors import ExperimentError, SettingsError, TextError
from swm.healing.lora import check_adapts, check_shared, recover, recover_in_four_bits, teacher_of
from swm.healing.own_answers import check_prompts
from swm.healing.quantized import check_quantizes, fold_adapter
from swm.healing.rows import check_rows
from swm.healing.trainer import OnStep
from swm.merging.fit import solving_bytes
from swm.models.decoder import check_length
from swm.models.load import load_tokenizer, pick_device
from swm.models.locate import load_config, skeleton
from swm.models.offload import let_go
from swm.models.processes import agreed, check_sharding, first_alone, is_first, on_its_own, world_size
from swm.models.save import check_complete
from swm.plan import MergePlan, trained_layers
from swm.progress import Progress, no_progress
from swm.settings import UNSAID, RecoverySettings
from swm.stages.healing_start import REPAIRED, answered, original_of, start_of, starts_from_disk, write_start
from swm.stages.loading import calibration_of, check_text, digest, load_original
from swm.stages.merge import check_not_baseline, save_run_model
from swm.texts.documents import recovery_examples, text_hash
from swm.texts.example import Example
from swm.workspace.estimate import BACKWARD, evaluated_tokens, training_speed
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run
from swm.workspace.training_memory import trained_bytes

BASE = "base"  # folder of the merged model that four-bit weights are read from
log = logging.getLogger(__name__)


def check_recovery(experiment: Experiment, settings: RecoverySettings, plan: MergePlan) -> list[Example]:
    """Raise the errors that a recovery with these settings would raise, before anything is merged, loaded or deleted.

    Returns:
        The recovery examples.
    """
    check_text(experiment)
    check_target(settings, plan)
    name = experiment.settings.model
    config, tokenizer = load_config(name), load_tokenizer(name)
    check_length(config, settings.length)
    check_quantizes(settings)
    check_adapts(skeleton(config, name), settings)
    examples = recovery_examples(settings.texts, settings.seed)
    check_rows(tokenizer, examples, settings)
    if settings.answers == "original":
        check_prompts(examples)
    return examples


def check_target(settings: RecoverySettings, plan: MergePlan) -> None:
    """Raise SettingsError if the target is hidden states whose size the merged model does not share."""
    if settings.target == "hidden" and plan.windows and "scale" in (settings.repair, plan.rule):
        raise SettingsError(
            "--target hidden compares hidden states with the original's, but rule and repair scale leave them in "
            "another size, which only the final norm takes away. Choose --target original, or another rule and repair."
        )


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
    examples = check_recovery(run.experiment, settings, run.plan)
    tokenizer = load_tokenizer(run.experiment.settings.model)
    trained = trained_bytes(settings, run.plan, run.experiment.model_facts)
    models = 1 if settings.quantization == "none" else 2  # and two checkpoints and one being written
    check_space(run.folder, models * run.settings["merge"]["size_bytes"] + 3 * trained)
    ids = calibration_of(run.experiment, tokenizer)  # read now: the text may change during training
    requested = {**asdict(settings), "text_hash": text_hash(settings.texts, "recovery")}
    requested["examples_hash"] = _examples_hash(examples)
    if settings.quantization == "none":
        healed, summary = _healed(run, tokenizer, examples, settings, requested, progress)
        if is_first():
            save_run_model(run, healed, tokenizer, ids, *_outcome(run, requested, summary))
        return summary
    adapted, base, summary = _healed_in_four_bits(run, tokenizer, examples, settings, requested, progress)
    if is_first():
        with disk_errors(run.folder, 0), replaced_folder(run.model_folder) as new:
            fold_adapter(base, adapted, new)
            check_complete(new)
            run.promise(new, *_outcome(run, requested, summary))
        run.settle()
        shutil.rmtree(folder / BASE, ignore_errors=True)
    return summary


def _healed(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    requested: dict[str, Any],
    progress: Progress,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The healed model, and a summary of the training."""
    model = original_of(run, settings, progress)
    _begin(run, settings, requested)
    start = start_of(run, model, tokenizer, examples, settings, progress)
    del model  # training needs the merged one alone
    behind = [(own, window.last) for own, window in enumerate(run.plan.kept_layers()) if len(window) > 1]
    healed, summary = recover(
        start.merged,
        tokenizer,
        start.examples,
        settings,
        run.folder / "recovery",
        _told(run, progress),
        teacher=teacher_of(start.merged, start.original, settings.target, behind) if start.original else None,
        layers=trained_layers(run.plan, settings.adapt),
    )
    return healed, {**summary, "repaired": start.repaired}


def _healed_in_four_bits(
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    requested: dict[str, Any],
    progress: Progress,
) -> tuple[Any, Path, dict[str, Any]]:
    """The trained adapters, the folder of the model that they belong to, and a summary.

    That folder is the run's own, if it holds the merged model and nothing is fitted; then the model is never in memory
    with all its digits. Otherwise it is made first, and kept for a resume.
    """
    name = run.experiment.settings.model
    as_it_is = run.stage == "merged" and run.has_model and (settings.repair == "none" or not run.plan.windows)
    base = run.model_folder if as_it_is else run.folder / "recovery" / BASE
    with first_alone():
        made = as_it_is or (_continues(run, requested) and base.is_dir())
    needed = not made or settings.answers == "original"
    progress(0, 0, "loading the model")
    model = None
    if needed and is_first():
        with on_its_own():
            from_disk = settings.answers == "given" and starts_from_disk(run)
            solves = from_disk and "fit" in (settings.repair, run.plan.rule)
            spare = solving_bytes(skeleton(load_config(name), name)) if solves else 0
            model = load_original(run.experiment, offload=from_disk, spare=spare)[0]
    _begin(run, settings, requested)
    repaired = "none" if as_it_is else run.settings.get(REPAIRED, "") if made else ""
    if model:
        with on_its_own():
            examples = answered(run, model, tokenizer, examples, settings, progress)
            if not made:
                repaired = write_start(run, base, model, tokenizer, examples, settings, progress)
    del model  # training does not need it
    let_go()
    examples, repaired = agreed((examples, repaired))
    progress(0, 0, "loading the model in four bits")
    adapted, summary = recover_in_four_bits(
        base,
        tokenizer,
        examples,
        settings,
        run.folder / "recovery",
        _told(run, progress),
        device=pick_device("auto"),
        layers=trained_layers(run.plan, settings.adapt),
    )
    return adapted, base, {**summary, "repaired": repaired}


def _told(run: Run, progress: Progress) -> OnStep:
    """What reports each step of a training."""
    loss_text = ""

    def step(done: int, steps: int, numbers: dict[str, float]) -> None:
        nonlocal loss_text
        if not is_first():
            return
        run.add_event(stage="recover", step=done, steps=steps, **numbers)
        loss_text = f"loss {numbers['loss']:.3f}" if "loss" in numbers else loss_text
        progress(done, steps, loss_text)

    return step


def _outcome(run: Run, requested: dict[str, Any], summary: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What a recovery adds to run.json, and what happens to the scores from before it; see `Run.promise`."""
    recovery = {**requested, **summary, "seconds": round(healing_seconds(run.events(), time.time()), 1)}
    recovery |= {"processes": world_size()} if world_size() > 1 else {}
    _keep_rate(run, recovery)
    return {"recovery": recovery}, "drop" if run.stage == "recovered" else "aside"


def _continues(run: Run, requested: dict[str, Any]) -> bool:
    """Whether the recovery that was begun last is the one that is asked for."""
    started = run.settings.get("recovery_started") or {}
    started = {**UNSAID, **started} if started else {}
    return bool(started) and all(requested.get(name) == value for name, value in started.items())


def _begin(run: Run, settings: RecoverySettings, requested: dict[str, Any]) -> None:
    """Set aside what a recovery with other settings or another text left, and note what this one is asked for."""
    with first_alone():
        if not _continues(run, requested):
            started = {**UNSAID, **(run.settings.get("recovery_started") or {})}
            if all(started.get(name) == value for name, value in asdict(settings).items()):
                log.warning("The recovery text %s has changed since healing began: starting over.", settings.texts)
            run.keep_adapter()
            shutil.rmtree(run.folder / "recovery", ignore_errors=True)  # before the settings it was started with go
            run.clear_events()
            run.remember(recovery_started=requested)
    if is_first():
        run.add_event(stage="recover", step=run.checkpoint_step(), steps=settings.steps, begun=True)


def _keep_rate(run: Run, recovery: dict[str, Any]) -> None:
    """Let later estimates know how fast this machine trains, unless several processes share the work."""
    speed, facts = training_speed(run.events(), recovery), run.experiment.model_facts
    if speed and world_size() == 1:
        rate = BACKWARD * evaluated_tokens(facts, run.plan, speed, 0)
        run.experiment.keep_rate("training", pick_device("auto").type, facts["dtype"], rate)


def healing_seconds(events: Sequence[dict[str, Any]], now: float) -> float:
    """Total seconds of all healing sessions; a killed session counts up to its last event."""
    sessions: list[list[float]] = []
    for event in events:
        if event.get("stage") == "recover":
            if event.get("begun") or not sessions:
                sessions.append([])
            sessions[-1].append(event["time"])
    return sum(times[-1] - times[0] for times in sessions[:-1]) + (now - sessions[-1][0] if sessions else 0.0)
