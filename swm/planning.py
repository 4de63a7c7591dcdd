"""The search on an experiment: its threshold path on disk, the plan at a threshold, with a depth, or by hand."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm import models, sources
from swm.decoder import find_decoder, size_bytes
from swm.errors import ModelError, SettingsError
from swm.evaluate import perplexity
from swm.experiments import Experiment
from swm.fit import WindowFitter, apply_fitted_plan, check_fits
from swm.merge import MergedLayer, check_plan
from swm.path import PlanAt, ThresholdPath
from swm.placement import free_bytes_on
from swm.plan import (
    DEFAULT_RULE,
    PLANS_VERSION,
    WEIGHT_RULES,
    MergePlan,
    Window,
    check_layers,
    check_planner,
    check_rule,
)
from swm.planners import DropLoss, PlanLoss, beam_drops, dropped_plan, plan_with
from swm.presets import FIT_TOKENS
from swm.search import settle, threshold_path
from swm.stages import Progress, calibration_of, check_text, fit_tokens_of, load_original, no_progress
from swm.view import known_similarity
from swm.walk import check_range, check_threshold
from swm.windows import WindowScorer

log = logging.getLogger(__name__)

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
SAVE_SECONDS = 2.0
SETTLING = 8  # plans of a depth that are made exact one after the other, at most
WORST = math.exp(50.0)  # a perplexity that says no more than "broken"; JSON has no infinity
BEST_BUDGET, BEST_WIDTH = 400, 3  # plans that planner `best` tries; sets that it goes on with, and fits in full at last
WINDOW_FIT_TOKENS = 4096  # to fit a window while searching; the plan chosen is fitted on more when it is merged


def search(
    experiment: Experiment,
    rule: str = DEFAULT_RULE,
    low: float = 0.5,
    focus: float = 0.9,
    progress: Progress = no_progress,
    precision: str = "auto",
    layers: int | None = None,
) -> ThresholdPath:
    """The threshold path from `low` to 1, written to path/<rule>.json as it grows; goes on where it stopped.

    With `layers`, only as far as plans need it that leave so many.

    With precision "auto", similarities are computed in bfloat16 where that is faster here; the plan at `focus` is then
    made sure of in the model's own format, and the path says how large the difference was. A path goes on in the format
    it was begun in, unless "exact" is asked for.
    """
    check_rule(rule)
    check_range(low)
    check_threshold(focus)
    progress(0, 0, "loading the model")
    bench = _bench(experiment, rule)
    path = _path_of(experiment, bench.model, rule, low, precision)
    scorer = _scorer(bench, rule, path.scoring)
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

    try:
        _settled(path, bench, scorer, focus, lambda layer: step(path, 0.0))
        save()
        threshold_path(
            experiment.layer_count,
            scorer.score,
            path.low,
            path.high,
            rule=rule,
            focus=focus,
            path=path,
            on_step=step,
            score_together=scorer.score_together,
            at_once=scorer.at_once,
            layers=layers,
        )
        save()
        plans = [MergePlan(path.layer_count, (), rule), *(step.plan for step in path.intervals())]
        wanted = [plan for plan in plans if layers is None or not plan.windows or plan.layers_left == layers]
        _measure_perplexities(path, wanted, bench, progress, save)
    finally:
        save()
    return path


def measure_plan(
    experiment: Experiment, plan: MergePlan, progress: Progress = no_progress, loaded: Loaded | None = None
) -> dict[str, Any]:
    """Similarity and perplexity on the calibration text of a plan, however it came about; kept with the path.

    Raises:
        ModelError: if the merged model's numbers overflow.
    """
    path = measured_path(experiment, plan, progress, loaded)
    if path.perplexities[plan.windows] >= WORST:
        raise ModelError(
            "The merged model's numbers overflow: its perplexity is beyond any number. Choose other windows or another "
            "rule, or create the experiment with --dtype float32."
        )
    perplexities = path.perplexities
    return {
        **plan.to_dict(),
        "similarity": known_similarity(path, plan),
        "perplexity": perplexities[plan.windows],
        "perplexity_original": perplexities[()],
    }


def measured_path(
    experiment: Experiment, plan: MergePlan, progress: Progress = no_progress, loaded: Loaded | None = None
) -> ThresholdPath:
    """The path of the plan's rule, with what the plan and the original measure on the calibration text in it."""
    progress(0, 2, "loading the model")
    bench = _bench(experiment, plan.rule, loaded)
    check_plan(bench.model, plan)
    path = _path_of(experiment, bench.model, plan.rule)
    if not path.is_exact(plan):
        progress(0, 2, "similarity")
        scorer, above, window = _scorer(bench, plan.rule), plan.windows[1:], plan.windows[0]
        path.keep(above, window, scorer.score(above, window), sure=path.scoring != "exact")
        path.layer_runs += scorer.layer_runs
    _measure_perplexities(path, [MergePlan(plan.layer_count, (), plan.rule), plan], bench, progress)
    if not experiment.read_only:
        experiment.save_path(path)
    return path


def _measure_perplexities(
    path: ThresholdPath,
    plans: Sequence[MergePlan],
    bench: _Bench,
    progress: Progress,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Perplexity on the calibration text of those of the plans that have none yet; each is kept as it comes.

    In the number format of the path's similarities; bfloat16 moves it by some 0.1 %.
    """
    left = [plan for plan in dict.fromkeys(plans) if plan.windows not in path.perplexities]
    if not left:
        return
    loss = PlanLoss(bench.model, bench.tokens, bench.make, fast=path.scoring != "exact")
    for done, plan in enumerate(left):
        progress(done, len(left), f"perplexity of plan {done + 1} of {len(left)}")
        path.perplexities[plan.windows] = min(math.exp(min(loss(plan), 50.0)), WORST)
        save()


@dataclass(frozen=True)
class _Bench:
    """What windows are tried on; `make` gives the merged layer where the rule needs more than the weights."""

    model: PreTrainedModel
    tokens: Tensor
    make: Callable[[Window], MergedLayer] | None


def _bench(experiment: Experiment, rule: str, loaded: Loaded | None = None) -> _Bench:
    model, tokenizer = loaded or load_original(experiment, spread=rule in WEIGHT_RULES)
    if rule not in WEIGHT_RULES:
        check_fits(model)
    tokens = calibration_of(experiment, tokenizer)
    if rule in WEIGHT_RULES:
        return _Bench(model, tokens, None)
    return _Bench(model, tokens, _fitter(experiment, model, tokenizer))


def _fitter(
    experiment: Experiment, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Window], MergedLayer]:
    """Makes the merged layer of a window by rule `fit`; those made last are kept in up to a quarter of free memory."""
    fitter = WindowFitter(model, fit_tokens_of(experiment, tokenizer, WINDOW_FIT_TOKENS))
    room = free_bytes_on(model.device) // (4 * size_bytes(find_decoder(model).layers[0]))
    return lru_cache(max(1, room))(fitter.merged)


def _path_of(
    experiment: Experiment, model: PreTrainedModel, rule: str, low: float = 0.5, precision: str = "auto"
) -> ThresholdPath:
    """The path as far as it is there and can be relied on; a new one in the precision asked for."""
    if doubt := experiment.outdated_path(rule):
        log.warning("Recomputing the threshold path for rule %s: %s.", rule, doubt)
    path = experiment.path(rule) or ThresholdPath(experiment.layer_count, rule, low)
    if not path.similarities:
        path.scoring = "bfloat16" if models.fast_format(model, precision) else "exact"
    elif precision == "exact" and path.scoring != "exact":
        log.warning("Recomputing the threshold path for rule %s: it was computed in %s.", rule, path.scoring)
        path = ThresholdPath(experiment.layer_count, rule, path.low)
    path.text_hash = experiment.text_hash
    return path


def _scorer(bench: _Bench, rule: str, scoring: str = "exact") -> WindowScorer:
    return WindowScorer(bench.model, bench.tokens, rule, fast=scoring != "exact", merged=bench.make)


def _settled(
    path: ThresholdPath, bench: _Bench, scorer: WindowScorer, threshold: float, on_step: Callable[[int], None]
) -> PlanAt:
    """The plan at a threshold, computed as far as it is missing and made sure of in the model's own format."""
    if path.scoring == "exact":
        return path.extend_quickly(threshold, scorer.score, on_step)
    return settle(path, threshold, scorer.score, _scorer(bench, path.rule).score, on_step)


def plan_for(
    experiment: Experiment,
    *,
    threshold: float | None = None,
    layers: int | None = None,
    rule: str = DEFAULT_RULE,
    progress: Progress = no_progress,
    precision: str = "auto",
    load: Callable[[], Loaded] | None = None,
) -> PlanAt:
    """The plan at a threshold or with a number of layers: from the path where it is computed, else searched now.

    Of several plans with that number of layers the one of lowest perplexity on the calibration text. The model comes
    from `load` where a threshold has to be searched and others need it too.

    Raises:
        SettingsError: if threshold, layers or rule cannot be. PlanError: if no threshold of the path leaves so many
            layers; the message names the nearest depths known.
    """
    if known := known_plan(experiment, threshold=threshold, layers=layers, rule=rule, precision=precision):
        return known
    path = experiment.path(rule)
    if threshold is not None:
        return _searched_plan(experiment, threshold, rule, progress, load and load(), precision)
    assert layers is not None
    path = search(experiment, rule, path.low if path else 0.5, progress=progress, precision=precision, layers=layers)
    step, loaded = path.plan_with_layers(layers), None
    for _ in range(SETTLING):  # an exact similarity can move another plan to the front
        if path.is_exact(step.plan):
            break
        loaded = loaded or (load() if load else load_original(experiment, spread=rule in WEIGHT_RULES))
        path = measured_path(experiment, step.plan, progress, loaded)
        step = path.plan_with_layers(layers)
    return step


def known_plan(
    experiment: Experiment,
    *,
    threshold: float | None = None,
    layers: int | None = None,
    rule: str = DEFAULT_RULE,
    precision: str = "auto",
) -> PlanAt | None:
    """As `plan_for`, from the path as far as it is computed and sure; None if it has to be searched."""
    check_rule(rule)
    if (threshold is None) == (layers is None):
        raise SettingsError("Say either --threshold or --layers.")
    if not experiment.read_only and experiment.settings.texts.endswith((".txt", ".jsonl")):  # others do not change
        check_text(experiment)
    path = experiment.path(rule)
    if threshold is not None:
        check_threshold(threshold)
        step = path.plan_at(threshold) if path else None
        if path is None or step is None or experiment.read_only:
            return step
        return None if path.unsure_trials(step) else _savable(experiment, step)
    assert layers is not None
    check_layers(layers, experiment.layer_count)
    if path is None or not path.knows_all_with(layers):
        return None
    fitting = [step for step in path.intervals() if step.plan.layers_left == layers]
    if not experiment.read_only and any(step.perplexity is None for step in fitting):
        return None
    step = path.plan_with_layers(layers)
    exact = path.is_exact(step.plan) and (precision != "exact" or path.scoring == "exact")
    if experiment.read_only:
        return step
    return _savable(experiment, step) if exact else None


def _savable(experiment: Experiment, step: PlanAt) -> PlanAt:
    """The same, once the smaller model's config is known to be able to describe it; no weight is read."""
    name = experiment.settings.model
    check_plan(sources.skeleton(sources.load_config(name), name), step.plan)
    return step


def _searched_plan(
    experiment: Experiment, threshold: float, rule: str, progress: Progress, loaded: Loaded | None, precision: str
) -> PlanAt:
    """The plan at one threshold, searched; the similarities found are kept in the path."""
    progress(0, 0, "loading the model")
    bench = _bench(experiment, rule, loaded)
    path = _path_of(experiment, bench.model, rule, precision="auto" if experiment.path(rule) else precision)
    scorer, layers = _scorer(bench, rule, path.scoring), experiment.layer_count - 1
    step = _settled(path, bench, scorer, threshold, lambda layer: progress(layer, layers, f"layer {layers - layer}"))
    path.layer_runs += scorer.layer_runs
    if not experiment.read_only:
        experiment.save_path(path)
    check_plan(bench.model, step.plan)
    return step


def plan_by(
    experiment: Experiment,
    planner: str,
    layers: int,
    budget: int = BEST_BUDGET,
    progress: Progress = no_progress,
    *,
    rule: str | None = None,
    precision: str = "auto",
) -> dict[str, Any]:
    """A planner's plan with so many layers, what it measures, and what finding it took; kept, so it is found once.

    Args:
        rule: how its windows merge, instead of what the planner's method does.

    Returns:
        The plan's entries, `planner`, `seconds`, and similarity and perplexities as from `measure_plan`.

    Raises:
        SettingsError: if planner, layers or budget cannot be. PlanError: if the planner finds no such plan.
    """
    check_planner(planner)
    check_layers(layers, experiment.layer_count)
    if planner == "best" and experiment.layer_count > layers:
        _check_budget(budget, experiment.layer_count, layers)
    data = experiment.planned(planner, layers)
    fits = precision in ("auto", (data or {}).get("scoring", "auto"))
    if data is None or data.get("budget", budget) != budget or not fits:
        data = _found_plan(experiment, planner, layers, budget, progress, precision)
    if rule and rule != data["rule"]:
        plan = replace(MergePlan.from_dict(data), rule=rule)
        return {**data, **measure_plan(experiment, plan, progress)}
    return data


def _check_budget(budget: int, layer_count: int, layers: int) -> None:
    least = layer_count - 1 + BEST_WIDTH * (layer_count - layers - 1)
    if not least <= budget <= 1_000_000:
        raise SettingsError(
            f"--budget {budget} is out of range. To leave {layers} of {layer_count} layers choose {least:,} to "
            "1,000,000 plans: each layer once, and some for every further one that goes."
        )


def _found_plan(
    experiment: Experiment, planner: str, layers: int, budget: int, progress: Progress, precision: str
) -> dict[str, Any]:
    start = time.time()
    progress(0, 0, "loading the model")
    model, tokenizer = load_original(experiment, spread=planner not in ("best", "taylor"))
    if planner == "best":
        check_fits(model)
    tokens, fast = calibration_of(experiment, tokenizer), models.fast_format(model, precision)

    def on_try(done: int, total: int) -> None:
        progress(done, total, f"{planner}: {done} plans tried")

    if planner == "best":
        plan = _best_plan(experiment, model, tokenizer, layers, budget, progress, on_try, fast)
    else:
        plan = plan_with(planner, model, tokens, layers, experiment.settings.seed, on_try, fast)
    seconds = round(time.time() - start, 1)
    found = measure_plan(experiment, plan, progress, (model, tokenizer))
    data = {**found, "planner": planner, "seconds": seconds, "version": PLANS_VERSION}
    data |= {"text_hash": experiment.text_hash, "scoring": "bfloat16" if fast else "exact"}
    if planner == "best":
        data["budget"] = budget
    if not experiment.read_only:
        experiment.save_planned(planner, layers, data)
    return data


def _best_plan(
    experiment: Experiment,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: int,
    budget: int,
    progress: Progress,
    on_try: Callable[[int, int], None],
    fast: bool,
) -> MergePlan:
    """Layers to drop by beam search over quickly fitted plans; the last are fitted in full and judged on new text."""
    count, tokens = experiment.layer_count, calibration_of(experiment, tokenizer)
    made = _fitter(experiment, model, tokenizer)
    loss = DropLoss(PlanLoss(model, tokens, made, fast), count, "fit")
    found = beam_drops(range(1, count), count - layers, loss, BEST_WIDTH, budget, on_try)
    plans = [replace(dropped_plan(count, gone), rule="fit") for gone in found]
    rows = fit_tokens_of(experiment, tokenizer, FIT_TOKENS * 4 // 3)
    apart = len(rows) // 4  # what a plan is fitted on does not judge it
    perplexities = []
    for done, plan in enumerate(plans):
        progress(done, len(plans), f"fitting plan {done + 1} of {len(plans)} in full")
        fitted = apply_fitted_plan(model, plan, rows[apart:])
        perplexities.append(perplexity(fitted, rows[:apart])["value"])
    return plans[perplexities.index(min(perplexities))]
