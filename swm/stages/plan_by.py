"""A planner's plan, saved and reused."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from swm.errors import PlanError
from swm.models.layer_pattern import placed_kinds
from swm.models.load import fast_format
from swm.models.locate import load_config
from swm.models.processes import agreed, is_first
from swm.plan import MergePlan, check_layers
from swm.planners.plan_with import check_budget, plan_with
from swm.progress import Progress, no_progress, share_of
from swm.registry import MERGE_RULES, PLANNERS
from swm.search.kept_path import kept_answers
from swm.search.tried import TriedPlans
from swm.settings import PLAN_BUDGET, SearchOptions
from swm.stages.abilities import kept_abilities, rises_of_plan
from swm.stages.loading import calibration_of, fit_tokens_of, load_original
from swm.stages.measure_plan import measure_plan
from swm.stages.search import Loaded, bench_for, measure_perplexities, path_to_extend
from swm.texts.ability_names import whole_keep
from swm.workspace.experiments import PLANS_VERSION, SEARCHED_BY, Experiment

log = logging.getLogger(__name__)
BRIEF_SECONDS = 10.0  # that choosing on halves of the text may take where nobody asked for it
USUAL = SearchOptions()
SEARCHING = 0.95  # share of the progress that the search is; measuring its plan follows


def plan_by(
    experiment: Experiment,
    planner: str,
    layers: int,
    progress: Progress = no_progress,
    *,
    how: SearchOptions = USUAL,
    brief: bool = False,
) -> dict[str, Any]:
    """A planner's plan with `layers` layers, its measurements and the seconds it took; saved and reused.

    Args:
        brief: for callers that only need the plan: leave out what its model writes and, unless it takes but seconds,
            what the planner chooses on each half of the text.

    Returns:
        The plan's entries, `planner`, `seconds`, and similarity and perplexities as from `measure_plan`.

    Raises:
        SettingsError: if planner, layers or budget is invalid. PlanError: if the planner finds no such plan.
    """
    PLANNERS.check(planner)
    check_layers(layers, experiment.layer_count)
    if not how.minutes:
        check_budget(planner, how.budget, experiment.layer_count, layers)
    kinds = placed_kinds(load_config(experiment.settings.model)) if how.keep_period else []
    keep = whole_keep(how.keep) if how.keep else ""
    asked = _Asked(experiment, planner, layers, how.precision, _searched_by(planner, how, bool(kinds), keep), brief)
    data = agreed(experiment.planned(planner, layers, keep))
    if data is None or not asked.is_answered_by(data):
        data = _found_plan(asked, progress)
    elif not (brief or experiment.read_only) and not agreed(_has_answers(experiment, data)):
        measure_plan(experiment, MergePlan.from_dict(data), progress)
    if how.rule and how.rule != data["rule"]:
        plan = replace(MergePlan.from_dict(data), rule=how.rule)
        if plan.out_of_place(kinds):
            raise PlanError(
                f"Rule {how.rule} keeps other layers than {planner} chose for their kinds. Leave out --rule."
            )
        measured = measure_plan(experiment, plan, progress)
        return {**data, **measured, "fitted_in_full": False, "halves": []}  # their perplexity is of its own rule
    return data


def _searched_by(planner: str, how: SearchOptions, keep_period: bool, keep: str) -> dict[str, Any]:
    """What a saved plan says of its search: two plans of the same planner and depth can differ by it."""
    found: dict[str, Any] = {"keep_period": True} if keep_period else {}
    if PLANNERS[planner].least_budget:
        found |= {"minutes": how.minutes} if how.minutes else {"budget": how.budget}
    return found | ({"keep": keep} if keep else {})


@dataclass(frozen=True)
class _Asked:
    """A plan that is asked for; `how` is what is saved of its search, see `_searched_by`."""

    experiment: Experiment
    planner: str
    layers: int
    precision: str
    how: dict[str, Any]
    brief: bool

    @property
    def takes_halves(self) -> bool:
        """Whether the planner also chooses on each half of the text."""
        several = self.experiment.settings.count > 1
        return (
            PLANNERS[self.planner].halves
            and "keep" not in self.how
            and self.layers < self.experiment.layer_count
            and several
        )

    def is_answered_by(self, data: dict[str, Any]) -> bool:
        """Whether a saved plan was searched in this way, and everything about it is known."""
        lacking = self.takes_halves and "halves" not in data and not (self.brief or self.experiment.read_only)
        fits = self.precision in ("auto", data.get("scoring", "auto"))
        return fits and not lacking and self.how == {name: data[name] for name in SEARCHED_BY if name in data}


def _has_answers(experiment: Experiment, data: dict[str, Any]) -> bool:
    """Whether it is known what the model of a saved plan writes: brief callers leave that out."""
    plan = MergePlan.from_dict(data)
    return plan.windows in kept_answers(experiment, plan.rule).of


def _found_plan(asked: _Asked, progress: Progress) -> dict[str, Any]:
    experiment, planner, layers, how = asked.experiment, asked.planner, asked.layers, asked.how
    start, method = time.time(), PLANNERS[planner]
    progress(0, 0, "loading the model")
    model, tokenizer = load_original(experiment, offload=not method.whole_model)
    fast = fast_format(model, asked.precision)
    tokens, tried, minutes = calibration_of(experiment, tokenizer), TriedPlans(experiment), how.get("minutes")
    tried.losses = agreed(tried.losses)
    finalists: dict[str, Any] = {}
    keep = how.get("keep", "")
    halves = asked.takes_halves
    first = share_of(progress, 0, 0.5) if halves else progress
    named = share_of(lambda done, total, text: first(done, total, f"{planner}: {text}"), 0, SEARCHING)
    choose = partial(
        plan_with,
        planner,
        model,
        layers=layers,
        seed=experiment.settings.seed,
        fast=fast,
        budget=how.get("budget", PLAN_BUDGET),
        fit_tokens=partial(fit_tokens_of, experiment, tokenizer),
        keep_period="keep_period" in how,
        seconds=60 * minutes if minutes else None,
        needed=experiment.model_facts.get("needed_layers"),
        kept=kept_abilities(model, tokenizer, keep, fast) if keep else None,
        keep=keep,
    )
    choosing = time.time()
    try:
        plan = choose(
            tokens, losses=tried.losses, finalists=finalists, progress=tried.saving(named) if is_first() else named
        )
    finally:
        if is_first():
            tried.save()
    seconds = round(time.time() - start, 1)
    halves = halves and (not asked.brief or 2 * (time.time() - choosing) < BRIEF_SECONDS)
    log.info("%s chose %s (%d layers left). Measuring that plan.", method.title, plan, plan.layers_left)
    measured = measure_plan(
        experiment, plan, share_of(first, SEARCHING, 1), (model, tokenizer), answers=not asked.brief
    )
    data = {**measured, "planner": planner, "seconds": seconds, "version": PLANS_VERSION}
    data |= {"text_hash": experiment.text_hash, "scoring": "bfloat16" if fast else "exact", **how}
    if full := finalists.pop("perplexity", None):  # of the layers as they will be merged
        data |= {"perplexity": full, "fitted_in_full": MERGE_RULES[plan.rule].needs_text}
    data |= {"finalists": finalists} if finalists else {}
    if keep and not asked.brief:
        data["kept"] = rises_of_plan(experiment, plan, keep, (model, tokenizer), share_of(first, SEARCHING, 1))
    _keep(experiment, planner, layers, data)
    if halves:
        data["halves"] = _chosen_on_halves(experiment, choose, tokens, (model, tokenizer), progress)
        _keep(experiment, planner, layers, data)
    return data


def _chosen_on_halves(
    experiment: Experiment, choose: Callable[..., MergePlan], tokens: Tensor, loaded: Loaded, progress: Progress
) -> list[dict[str, Any]]:
    """What a planner chooses on each half of the text, with the perplexity of that on all of it."""
    parts = ((tokens[::2], 0.5), (tokens[1::2], 0.7))
    chosen = [choose(half, progress=share_of(progress, begin, begin + 0.2)) for half, begin in parts]
    return _with_perplexity(experiment, chosen, loaded, share_of(progress, 0.9, 1))


def _keep(experiment: Experiment, planner: str, layers: int, data: dict[str, Any]) -> None:
    if not experiment.read_only and is_first():
        experiment.save_planned(planner, layers, data)


def _with_perplexity(
    experiment: Experiment, plans: list[MergePlan], loaded: Loaded, progress: Progress
) -> list[dict[str, Any]]:
    """Plans chosen on a part of the text, with their perplexity on all of it."""
    path = agreed(path_to_extend(experiment, loaded[0], plans[0].rule))
    measure_perplexities(path, plans, bench_for(experiment, plans[0].rule, loaded), progress)
    return [{"windows": plan.to_dict()["windows"], "perplexity": path.perplexities[plan.windows]} for plan in plans]
