"""Computes the threshold path of an experiment."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.merging.fit import check_how, window_fitter
from swm.merging.merged_layer import MergedLayer
from swm.models.load import fast_format
from swm.models.processes import agreed, gathered, is_first, shared, world_size
from swm.plan import DEFAULT_RULE, MergePlan, Needed, Window
from swm.planners.needed import needed_layers
from swm.progress import UNLIKE, Progress, no_progress
from swm.registry import MERGE_RULES
from swm.search.find import Batches, Key, confirmed_plan, extended
from swm.search.kept_path import kept_path, outdated_path, save_path
from swm.search.plan_loss import PlanLoss
from swm.search.threshold_path import PlanAt, ThresholdPath
from swm.search.walk import check_range, check_threshold
from swm.search.window_score import WindowScorer
from swm.settings import DEFAULT_THRESHOLD, WINDOW_FIT_TOKENS
from swm.stages.answer_plans import SAVE_SECONDS, answer_plans
from swm.stages.loading import calibration_of, fit_tokens_of, load_original
from swm.workspace.experiments import Experiment

log = logging.getLogger(__name__)


Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


IN_A_ROUND = 4  # windows or plans for each of several processes before they exchange results
MEANWHILE = 0.25  # share of the time in which plans are measured while the similarities are computed
WORST = math.exp(50.0)  # a perplexity that only means "broken"; JSON has no infinity


def search_path(
    experiment: Experiment,
    rule: str = DEFAULT_RULE,
    low: float = 0.5,
    focus: float = DEFAULT_THRESHOLD,
    progress: Progress = no_progress,
    precision: str = "auto",
    layers: int | None = None,
    answers: bool = False,
) -> ThresholdPath:
    """The threshold path from `low` to 1, written to path/<rule>.json as it grows; an interrupted search is resumed.

    The plan at `focus` is measured first, those around it while the similarities are still computed, all others then.
    With `layers`, only the part needed for plans with that many layers. With `answers`, the model of each plan also
    continues the sample prompts.
    With precision "auto", similarities are computed in bfloat16 if that is faster here; the plan at `focus` is then
    confirmed in the model's own dtype, and the path records the largest difference. A resumed path keeps its dtype,
    unless "exact" is requested.
    """
    MERGE_RULES.check(rule)
    check_range(low)
    check_threshold(focus)
    progress(0, 0, "loading the model")
    bench = bench_for(experiment, rule)
    path = agreed(path_to_extend(experiment, bench.model, rule, low, precision))
    scorer = scorer_for(bench, rule, path.scoring)
    path.low = min(path.low, low)  # similarities do not depend on the range, so they are kept
    saved, runs_before = time.monotonic(), path.layer_runs

    def save() -> None:
        path.layer_runs = runs_before + scorer.layer_runs
        if is_first():
            save_path(experiment, path)

    def step(path: ThresholdPath, covered: float) -> None:
        nonlocal saved
        if time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
        progress(round(UNLIKE * covered), UNLIKE, f"{len(path.similarities)} windows tried")
        plans.meanwhile(path)

    plans = _Plans(experiment, bench, focus, progress if answers else None)
    # One walk leaves several processes nothing to share out: its windows are then scored with the path's.
    last = world_size() > 1 and path.low <= focus <= path.high and layers is None
    try:
        path = path if last else _confirmed(path, bench, scorer, focus, step)
        save()
        if world_size() == 1 and layers is None:
            plans.measure(path, plans.nearest(path)[:1], progress, save)
        _fill(path, scorer, focus, layers, step)
        if last:  # what was confirmed can lead to windows that were not tried yet
            path = _confirmed(path, bench, scorer, focus, step)
            _fill(path, scorer, focus, layers, step)
        runs_before += sum(gathered([scorer.layer_runs])) - scorer.layer_runs  # of the other processes
        save()
        plans.measure(path, [p for p in plans.nearest(path) if layers in (None, p.layers_left)], progress, save)
    finally:
        save()
    return path


def _confirmed(
    path: ThresholdPath,
    bench: Bench,
    scorer: WindowScorer,
    focus: float,
    on_step: Callable[[ThresholdPath, float], None],
) -> ThresholdPath:
    """The path with the plan at the focus confirmed, the same in all processes."""
    exact_plan(path, bench, scorer, focus, lambda layer: on_step(path, 0.0))
    return agreed(path)


def _fill(
    path: ThresholdPath,
    scorer: WindowScorer,
    focus: float,
    layers: int | None,
    on_step: Callable[[ThresholdPath, float], None],
) -> None:
    def apart(keys: list[Key]) -> list[float]:
        return shared(keys, scorer.score_all, lambda key: path.layer_count - key[1].first)

    batches = (
        Batches(IN_A_ROUND * world_size(), apart=apart)
        if world_size() > 1
        else Batches(scorer.at_once, scorer.score_together)
    )
    extended(path, scorer.score, focus=focus, layers=layers, batches=batches, on_step=on_step)


class _Plans:
    """Measures the plans of a path, those at thresholds near the focus first; once begun, also between similarities.

    Args:
        asking: called while the plans' models continue the sample prompts; None: they are not asked.
    """

    def __init__(self, experiment: Experiment, bench: Bench, focus: float, asking: Progress | None) -> None:
        self._experiment, self._bench, self._focus, self._asking = experiment, bench, focus, asking
        self._loss: PlanLoss | None = None
        self._start, self._spent = 0.0, 0.0

    def nearest(self, path: ThresholdPath) -> list[MergePlan]:
        """The plans computed so far, those near the focus first."""
        steps = sorted(path.intervals(), key=lambda step: max(step.low - self._focus, self._focus - step.high, 0.0))
        return [step.plan for step in steps]

    def measure(
        self, path: ThresholdPath, plans: list[MergePlan], progress: Progress, save: Callable[[], None]
    ) -> None:
        """Measure the original and these plans, and let them continue the prompts."""
        self._loss = self._loss or loss_for(self._bench, path)
        plans = [MergePlan(path.layer_count, (), path.rule), *plans]
        measure_perplexities(path, plans, self._bench, progress, save, self._loss)
        if self._asking:
            bench = self._bench
            answer_plans(self._experiment, plans, bench.model, bench.tokenizer, bench.make, self._asking)
        self._start = self._start or time.monotonic()

    def meanwhile(self, path: ThresholdPath) -> None:
        """Measure the next plan, unless that took its share of the time already."""
        now = time.monotonic()
        if not self._start or self._spent > MEANWHILE * (now - self._start):
            return
        left = (plan for plan in self.nearest(path) if plan.windows not in path.perplexities)
        if plan := next(left, None):
            measure_perplexities(path, [plan], self._bench, loss=self._loss)
        self._spent += time.monotonic() - now


def loss_for(bench: Bench, path: ThresholdPath) -> PlanLoss:
    """What measures plans, in the dtype of the path's similarities."""
    return PlanLoss(bench.model, bench.tokens, bench.make, fast=path.scoring != "exact")


def measure_perplexities(
    path: ThresholdPath,
    plans: Sequence[MergePlan],
    bench: Bench,
    progress: Progress = no_progress,
    save: Callable[[], None] = lambda: None,
    loss: PlanLoss | None = None,
) -> None:
    """Measure the perplexity of plans that have none yet, on the calibration text; each is saved at once.

    Uses the dtype of the path's similarities; bfloat16 changes it by about 0.1 %.

    Args:
        loss: what measures them; by default it is made here, which takes a pass over the text.
    """
    left = [plan for plan in dict.fromkeys(plans) if plan.windows not in path.perplexities]
    if not left:
        return
    measure = loss or loss_for(bench, path)
    at_once = IN_A_ROUND * world_size() if world_size() > 1 else 1
    for done in range(0, len(left), at_once):
        progress(done, len(left), f"perplexity of plan {done + 1} of {len(left)}")
        plans = left[done : done + at_once]
        losses = shared(plans, lambda part: list(map(measure, part)), _layers_run)
        for plan, value in zip(plans, losses, strict=True):
            path.perplexities[plan.windows] = math.exp(min(value, 50.0))
        save()


def _layers_run(plan: MergePlan) -> float:
    """About how many layers run to measure a plan: those from its lowest window up."""
    return float(plan.layer_count - min((window.first for window in plan.windows), default=plan.layer_count - 1))


@dataclass(frozen=True)
class Bench:
    """The model and text for trying windows, of which some leave none of the `needed` layers.

    `make` returns the merged layer if the rule needs more than weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokens: Tensor
    make: Callable[[Window], MergedLayer] | None
    needed: Needed = ()


def bench_for(experiment: Experiment, rule: str, loaded: Loaded | None = None) -> Bench:
    """The model and text for trying an experiment's windows with a rule."""
    needs_text = MERGE_RULES[rule].needs_text
    model, tokenizer = loaded or load_original(experiment, offload=True)
    if needs_text:
        check_how(model, rule)
    tokens, make = calibration_of(experiment, tokenizer), None
    if needs_text:
        make = window_fitter(model, fit_tokens_of(experiment, tokenizer, WINDOW_FIT_TOKENS), rule)
    known = experiment.model_facts.get("needed_layers")
    return Bench(model, tokenizer, tokens, make, needed_layers(model) if known is None else known)


def path_to_extend(
    experiment: Experiment, model: PreTrainedModel, rule: str, low: float = 0.5, precision: str = "auto"
) -> ThresholdPath:
    """The saved path if it is still valid, otherwise a new one in the requested precision."""
    if reason := outdated_path(experiment, rule):
        log.warning("Recomputing the threshold path for rule %s: %s.", rule, reason)
    path = kept_path(experiment, rule) or ThresholdPath(experiment.layer_count, rule, low)
    if not path.similarities:
        path.scoring = "bfloat16" if fast_format(model, precision) else "exact"
    elif precision == "exact" and path.scoring != "exact":
        log.warning("Recomputing the threshold path for rule %s: it was computed in %s.", rule, path.scoring)
        path = ThresholdPath(experiment.layer_count, rule, path.low)
    path.text_hash = experiment.text_hash
    return path


def scorer_for(bench: Bench, rule: str, scoring: str = "exact") -> WindowScorer:
    """The scorer of windows for a rule, in the precision of a path."""
    fast = scoring != "exact"
    return WindowScorer(bench.model, bench.tokens, rule, fast=fast, merged=bench.make, needed_layers=bench.needed)


def exact_plan(
    path: ThresholdPath, bench: Bench, scorer: WindowScorer, threshold: float, on_step: Callable[[int], None]
) -> PlanAt:
    """The plan at a threshold; missing similarities are computed, the plan is confirmed in the model's own dtype."""
    if path.scoring == "exact":
        return path.extend_quickly(threshold, scorer.score, on_step)
    return confirmed_plan(path, threshold, scorer.score, scorer_for(bench, path.rule).score, on_step)
