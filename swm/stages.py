"""One function for each stage: read the experiment or run, call the engine, write the result.

A stage reports through `progress(done, total, text)`, which may raise Cancelled; what was finished is kept.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm import models
from swm.errors import ExperimentError, SettingsError, TextError
from swm.evaluate import TaskScore, check_request, perplexity, zero_shot
from swm.experiments import BASELINE, Experiment, Run, Settings, check_new
from swm.files import check_space, content_hash, home, read_json, write_json
from swm.merge import apply_plan
from swm.metrics import Measure
from swm.plan import DEFAULT_RULE, MergePlan, check_rule
from swm.presets import RecoverySettings
from swm.recover import recover, training_rows
from swm.replay import WindowScorer
from swm.search import PlanAt, ThresholdPath, check_range, check_threshold, settle, threshold_path
from swm.similarity import measure_similarity
from swm.texts import PERPLEXITY_TEXTS, calibration_tokens, perplexity_tokens, recovery_examples, whole_characters
from swm.timing import decode_cost, generated_tokens, throughput, time_models
from swm.view import known_similarity

Progress = Callable[[int, int, str], None]
SAVE_SECONDS = 2.0
SAMPLE_PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a little bear who",
    "Question: What do plants need to grow?\nAnswer:",
)
SAMPLE_TOKENS = 32


def no_progress(done: int, total: int, text: str) -> None:
    """For callers that do not watch."""


def create(name: str, settings: Settings) -> Experiment:
    """A new experiment, once model, number format and text have been found to be usable."""
    check_new(name)
    models.check_dtype(settings.dtype)
    if settings.texts.startswith("task:"):
        raise TextError("Prompts of a task cannot calibrate: its scores would not be zero-shot. Choose another text.")
    settings = replace(settings, model=_absolute(settings.model), texts=_absolute(settings.texts))
    facts = models.config_facts(settings.model, settings.dtype)
    config, tokenizer = models.load_config(settings.model), models.load_tokenizer(settings.model)
    models.check_length(config, settings.length)
    tokens = calibration_tokens(tokenizer, settings.texts, settings.count, settings.length, settings.seed)
    models.check_vocabulary(config, tokens)
    return Experiment.create(name, settings, facts)


def _absolute(name: str) -> str:
    """A file or folder by its full path, since jobs run elsewhere; other names as they are."""
    path = models.local_path(name)
    return str(path.absolute()) if path.exists() and name not in models.BUNDLED else name


def measure(experiment: Experiment, how: Measure | str = "cka", progress: Progress = no_progress) -> dict[str, Any]:
    """Similarity of all layer pairs, written to similarity/<name of the measure>.json."""
    how = Measure(how) if isinstance(how, str) else how
    progress(0, 0, "loading the model")
    model, tokenizer = load_original(experiment)
    tokens = _calibration(experiment, tokenizer, how.texts)
    start = time.time()
    found = measure_similarity(model, tokens, how, lambda done, total: progress(done, total, "measuring"))
    data = {
        **asdict(how),
        "matrix": found.matrix.tolist(),
        "block_influence": found.block_influence.tolist(),
        "norm": found.norm.tolist(),
        "tokens": found.tokens,
        "warning": found.warning,
        "conditions": _conditions(experiment, model, start),
    }
    experiment.save_similarity(how.name, data)
    if not experiment.cost():
        progress(0, 0, "timing a token")
        experiment.save_cost(decode_cost(model, _calibration(experiment, tokenizer)[:1, :64]))
    return data


def search(
    experiment: Experiment,
    rule: str = DEFAULT_RULE,
    low: float = 0.5,
    focus: float = 0.9,
    progress: Progress = no_progress,
    exact: bool = False,
) -> ThresholdPath:
    """The threshold path from `low` to 1, written to path/<rule>.json as it grows; goes on where it stopped.

    Unless `exact`, similarities are computed in bfloat16 where that is faster here; the plan at `focus` is then checked
    in the model's own format, and the path says how large the difference was.
    """
    check_rule(rule)
    check_range(low)
    check_threshold(focus)
    progress(0, 0, "loading the model")
    model, tokens = _model_and_tokens(experiment)
    path, scorer, settled = _scoring(experiment, model, tokens, rule, low, exact)
    path.low = min(path.low, low)  # similarities do not depend on the range: they are kept
    saved, runs_before = time.monotonic(), path.layer_runs

    def save() -> None:
        path.layer_runs = runs_before + scorer.layer_runs
        experiment.save_path(path)

    def step(path: ThresholdPath, covered: float) -> None:
        nonlocal saved
        if time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
        progress(round(1000 * covered), 1000, f"{len(path.similarities)} windows tried")

    def first(layer: int) -> None:
        progress(0, 1000, f"{len(path.similarities)} windows tried")

    try:
        settled(focus, first)
        save()
        threshold_path(
            experiment.layer_count, scorer.score, path.low, path.high, rule=rule, focus=focus, path=path, on_step=step
        )
        save()
        _measure_perplexities(path, [step.plan for step in path.intervals()], model, tokens, progress, save)
    finally:
        save()
    return path


def measure_plan(experiment: Experiment, plan: MergePlan, progress: Progress = no_progress) -> dict[str, Any]:
    """Similarity and perplexity on the calibration text of a plan, however it came about; kept with the path."""
    progress(0, 2, "loading the model")
    model, tokens = _model_and_tokens(experiment)
    path, scorer, _ = _scoring(experiment, model, tokens, plan.rule, 0.5, exact=False)
    if plan.windows and known_similarity(path, plan) is None:
        progress(0, 2, "similarity")
        path.keep(plan.windows[1:], plan.windows[0], scorer.score(plan.windows[1:], plan.windows[0]))
        path.layer_runs += scorer.layer_runs
    _measure_perplexities(path, [MergePlan(plan.layer_count, (), plan.rule), plan], model, tokens, progress)
    if not experiment.read_only:
        experiment.save_path(path)
    perplexities = path.perplexities
    return {
        **plan.to_dict(),
        "similarity": known_similarity(path, plan),
        "perplexity": perplexities[plan.windows],
        "perplexity_original": perplexities[()],
    }


def _measure_perplexities(
    path: ThresholdPath,
    plans: Sequence[MergePlan],
    model: PreTrainedModel,
    tokens: Any,
    progress: Progress,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Perplexity on the calibration text of those of the plans that have none yet; each is kept as it comes.

    In the number format of the path's similarities; bfloat16 moves it by some 0.1 %.
    """
    left = [plan for plan in dict.fromkeys(plans) if plan.windows not in path.perplexities]
    for done, plan in enumerate(left):
        progress(done, len(left), f"perplexity of plan {done + 1} of {len(left)}")
        with torch.autocast(model.device.type, torch.bfloat16, enabled=path.scoring != "exact"):
            path.perplexities[plan.windows] = perplexity(apply_plan(model, plan), tokens)["value"]
        save()


def _model_and_tokens(experiment: Experiment) -> tuple[PreTrainedModel, Any]:
    model, tokenizer = load_original(experiment)
    return model, _calibration(experiment, tokenizer)


def _scoring(
    experiment: Experiment, model: PreTrainedModel, tokens: Any, rule: str, low: float, exact: bool
) -> tuple[ThresholdPath, WindowScorer, Callable[[float, Callable[[int], None]], PlanAt]]:
    """The path as far as it is there, the scorer it was begun with, and what makes sure of the plan at a threshold."""
    path = experiment.path(rule) or ThresholdPath(experiment.layer_count, rule, low)
    if not path.similarities:
        fast = not exact and model.dtype == torch.float32 and models.bfloat16_is_faster(model.device)
        path.scoring = "bfloat16" if fast else "exact"
    elif exact and path.scoring != "exact":
        path = ThresholdPath(experiment.layer_count, rule, path.low)
    scorer = WindowScorer(model, tokens, rule, fast=path.scoring != "exact")

    def settled(threshold: float, on_step: Callable[[int], None]) -> PlanAt:
        if path.scoring == "exact":
            return path.extend_quickly(threshold, scorer.score, on_step)
        # Few windows are scored exactly: it keeps few hidden states.
        sure = WindowScorer(model, tokens, rule, keep_every=6)
        return settle(path, threshold, scorer.score, sure.score, on_step)

    return path, scorer, settled


def plan_for(
    experiment: Experiment,
    *,
    threshold: float | None = None,
    layers: int | None = None,
    rule: str = DEFAULT_RULE,
    progress: Progress = no_progress,
) -> PlanAt:
    """The plan at a threshold or with a number of layers: from the path where it is computed, else searched now.

    Of several plans with that number of layers the one of lowest perplexity on the calibration text.

    Raises:
        SettingsError: if threshold, layers or rule cannot be. PlanError: if no threshold of the path leaves so many
            layers; the message names the nearest depths.
    """
    if known := known_plan(experiment, threshold=threshold, layers=layers, rule=rule):
        return known
    path = experiment.path(rule)
    if threshold is not None:
        return _searched_plan(experiment, threshold, rule, progress)
    assert layers is not None
    path = search(experiment, rule, path.low if path else 0.5, progress=progress)
    return path.plan_with_layers(layers)


def known_plan(
    experiment: Experiment, *, threshold: float | None = None, layers: int | None = None, rule: str = DEFAULT_RULE
) -> PlanAt | None:
    """As `plan_for`, from the path as far as it is computed; None if it has to be searched."""
    check_rule(rule)
    if (threshold is None) == (layers is None):
        raise SettingsError("Say either --threshold or --layers.")
    path = experiment.path(rule)
    if threshold is not None:
        check_threshold(threshold)
        return path.plan_at(threshold) if path else None
    assert layers is not None
    if not 2 <= layers <= experiment.layer_count:
        raise SettingsError(
            f"--layers {layers} is out of range: the model has {experiment.layer_count} layers. "
            f"Choose 2 to {experiment.layer_count}."
        )
    if path is None or path.covered() < 0.999:
        return None
    step = path.plan_with_layers(layers)
    return step if step.perplexity is not None or experiment.read_only else None


def _searched_plan(experiment: Experiment, threshold: float, rule: str, progress: Progress) -> PlanAt:
    """The plan at one threshold, searched; the similarities found are kept in the path."""
    progress(0, 0, "loading the model")
    model, tokens = _model_and_tokens(experiment)
    path, scorer, settled = _scoring(experiment, model, tokens, rule, 0.5, exact=False)
    layers = experiment.layer_count - 1
    step = settled(threshold, lambda layer: progress(layer, layers, f"layer {layers - layer}"))
    path.layer_runs += scorer.layer_runs
    if not experiment.read_only:
        experiment.save_path(path)
    return step


def merge(run: Run, progress: Progress = no_progress) -> None:
    """Apply a run's plan, save the smaller model and check that it reloads with the same logits.

    A run that was recovered is merged again from its plan: what its recovery and scores said is forgotten.
    """
    _refuse_baseline(run, "merged")
    progress(0, 3, "loading the model")
    model, tokenizer = load_original(run.experiment)
    check_space(run.folder, models.size_bytes(model))
    progress(1, 3, "merging")
    merged = apply_plan(model, run.plan)
    _save(run, merged, tokenizer, progress)
    run.forget_recovery()
    run.remember(merge={"parameters": models.parameter_count(merged), "size_bytes": models.size_bytes(merged)})


def recover_run(run: Run, settings: RecoverySettings, progress: Progress = no_progress) -> dict[str, Any]:
    """Heal a merged model with LoRA and put the result in the place of the merged one.

    Starts from the plan, so it can be repeated; with the same settings it goes on from its last checkpoint.
    """
    _refuse_baseline(run, "recovered")
    if run.stage == "planned":
        raise ExperimentError(f"Run {run.name} is not merged yet. Merge it first.")
    folder = run.folder / "recovery"
    progress(0, settings.steps, "loading the model")
    model, tokenizer = load_original(run.experiment)
    models.check_length(model.config, settings.length)
    merged = apply_plan(model, run.plan)
    examples = recovery_examples(settings.texts, settings.seed)
    training_rows(tokenizer, examples, settings)  # tells of a text that is too short before anything is forgotten
    if run.settings.get("recovery_started") != asdict(settings):
        run.remember(recovery_started=asdict(settings))
        shutil.rmtree(folder, ignore_errors=True)
        run.clear_events()
    start, last = time.time(), ""

    def step(done: int, steps: int, numbers: dict[str, float]) -> None:
        nonlocal last
        run.add_event(stage="recover", step=done, steps=steps, **numbers)
        last = f"loss {numbers['loss']:.3f}" if "loss" in numbers else last
        progress(done, steps, last)

    first_layer = _lowest_changed(run.plan) if settings.adapt == "above" else 0
    healed, summary = recover(
        merged, tokenizer, examples, settings, folder, step, original=model, first_layer=first_layer
    )
    _save(run, healed, tokenizer, no_progress)
    run.set_aside_scores(keep=run.stage != "recovered")
    seconds = round(time.time() - start, 1)
    run.remember(recovery={**asdict(settings), **summary, "seconds": seconds}, recovery_started=None)
    return summary


def _lowest_changed(plan: MergePlan) -> int:
    """Two layers below the lowest merged one, counted in the merged model; 0 if nothing is merged."""
    return max(0, plan.windows[0].first - 2) if plan.windows else 0


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
    model, tokenizer = load_run(run)
    start, length = time.time(), min(256, models.context_length(model.config))
    tokens = {text: perplexity_tokens(tokenizer, text, length=length) for text in texts}
    perplexities = {text: perplexity(model, ids, on_progress=progress) for text, ids in tokens.items()}
    scores = _scores(run, model, tokenizer, tasks, limit, progress)
    data = {
        "stage": run.stage,
        "perplexity": perplexities,
        "tasks": {score.task: score.to_dict() for score in scores},
        "limit": limit,
        "fewshot": 0,
        "samples": [
            {"prompt": prompt, "answer": "".join(_pieces(model, tokenizer, prompt, SAMPLE_TOKENS, []))}
            for prompt in SAMPLE_PROMPTS
        ],
        "conditions": _conditions(run.experiment, model, start),
    }
    run.save("scores", data)
    run.save("documents", {"tasks": {score.task: score.answers for score in scores}})
    return data


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
    folder = models.model_folder(run.experiment.settings.model) if run.is_baseline else run.model_folder
    weights = content_hash(folder, ("*.safetensors", "*.json"))
    how = (str(model.dtype), model.device.type, limit, version("lm_eval"), version("transformers"), version("torch"))
    files = {task: home() / "cache" / "scores" / f"{_digest(weights, task, *how)}.json" for task in tasks}
    missing = [task for task in tasks if not files[task].is_file()]
    for score in zero_shot(model, tokenizer, missing, limit, progress) if missing else []:
        write_json(files[score.task], asdict(score))
    return [TaskScore.from_dict(read_json(files[task])) for task in tasks]


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def time_run(run: Run, new_tokens: int = 32, progress: Progress = no_progress) -> dict[str, Any]:
    """Latency, speed and memory of a run, measured in turn with the original; written to timing.json of both."""
    if not 2 <= new_tokens <= 10_000:
        raise SettingsError(f"--tokens {new_tokens} is out of range. Choose 2 to 10,000.")
    progress(0, 0, "loading the models")
    original, tokenizer = load_original(run.experiment)
    prompt = _calibration(run.experiment, tokenizer)[:1, :64]
    models.check_length(original.config, prompt.shape[1] + new_tokens)
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


class Answer:
    """A run's greedy continuation of a prompt; `speed` says, once it has ended, how fast it came."""

    def __init__(self, run: Run) -> None:
        self.run, self.speed = run, ""

    def pieces(self, prompt: str, new_tokens: int = 64) -> Iterator[str]:
        """The answer piece by piece; stops at end of text.

        Raises:
            SettingsError: if the prompt is empty, or prompt and answer do not fit the model's context.
        """
        model, tokenizer = load_run(self.run)
        times = [time.perf_counter()]
        yield from _pieces(model, tokenizer, prompt, new_tokens, times)
        if len(times) > 1:
            rest = times[-1] - times[1]
            rate = f", then {(len(times) - 2) / rest:.1f} tokens per second" if rest > 0 else ""
            self.speed = f"{len(times) - 1} tokens: the first after {times[1] - times[0]:.2f} s{rate}"


def _pieces(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int, times: list[float]
) -> Iterator[str]:
    """Pieces of text; the moment of each token goes into `times`."""
    ids = tokenizer(whole_characters(prompt), return_tensors="pt").input_ids
    context = models.context_length(model.config)
    if ids.shape[1] == 0:
        raise SettingsError("The prompt is empty. Write a few words to continue.")
    if not 1 <= new_tokens <= context - ids.shape[1]:
        raise SettingsError(
            f"{ids.shape[1]} prompt tokens and {new_tokens} new ones do not fit: the model reads {context} tokens. "
            "Shorten the prompt or ask for fewer tokens (at least 1)."
        )
    said, found = "", []
    with torch.inference_mode():
        for token in generated_tokens(model, ids, new_tokens):
            times.append(time.perf_counter())
            if int(token) == tokenizer.eos_token_id:
                return
            found.append(int(token))
            text = str(tokenizer.decode(found, skip_special_tokens=True))
            if text.endswith("\ufffd"):
                continue  # half of a character: wait for the rest
            yield text[len(said) :]
            said = text


def load_original(experiment: Experiment) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = models.load_model(experiment.settings.model, experiment.settings.dtype)
    if (found := models.layer_count(model)) != experiment.layer_count:
        raise ExperimentError(
            f"{experiment.settings.model} has {found} layers now, and had {experiment.layer_count} when "
            f"{experiment.name} was created. Create a new experiment."
        )
    return model, tokenizer


def load_run(run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The run's model: the original for the baseline, else the one in its folder."""
    if run.is_baseline:
        return load_original(run.experiment)
    if not run.has_model:
        raise ExperimentError(
            f"Run {run.name} has no model. Merge it first: python -m swm merge {run.experiment.name} {run.name} ..."
        )
    return models.load_model(str(run.model_folder), run.experiment.settings.dtype)


def _save(run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> None:
    progress(2, 3, "saving and reloading")
    models.save_model(model, tokenizer, run.model_folder, _calibration(run.experiment, tokenizer))


def _calibration(experiment: Experiment, tokenizer: PreTrainedTokenizerBase, texts: str = "") -> Any:
    """The experiment's calibration tokens, or as many of another text."""
    settings = experiment.settings
    return calibration_tokens(tokenizer, texts or settings.texts, settings.count, settings.length, settings.seed)


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
        "versions": {"swm": version_of_swm(), "python": sys.version.split()[0], **{p: version(p) for p in packages}},
    }


def version_of_swm() -> str:
    from swm import __version__

    return __version__
