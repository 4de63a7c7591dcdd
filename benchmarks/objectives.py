"""What plans should be judged by: perplexity of calibration text, choice log-probability on questions, or both.

    python benchmarks/objectives.py [--model smollm2-135m] [--layers 24,20] [--candidates 15] [--heal 60]

Candidates are plans that planner `best` tried, two thirds of them its best ones, the others spread over those up to
half a nat worse; each is fitted in full. Objectives, from what a search could look at:
- novels: loss of held-out texts of the kind it searches and fits on (LAMBADA).
- questions: choice log-probability on questions outside the seven tasks (COPA, MMLU, SciQ, CommonsenseQA, Social IQa).
- both: the mean of the two ranks.
Judges, which no objective sees: loss of Wikipedia (SQuAD) and choice log-probability over the seven tasks. Prints a
line for each candidate, each objective's rank correlation with each judge, and what it would have chosen; with --heal,
the choices again after that many steps of preset quick.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.healing_ways import answered, heal
from benchmarks.questions import Question, log_likelihoods, questions
from swm.plan import MergePlan, dropped_plan

SEED, LENGTH = 1234, 128
SPREAD = 0.5  # nats up to which the further candidates are worse than the best one
BEST_SHARE = 2 / 3
OBJECTIVES, JUDGES = ("novels", "questions", "both"), ("wikipedia", "tasks")
LOWER_IS_BETTER = ("novels", "both", "wikipedia")


@dataclass
class Setting:
    """What all candidates share: the model, and what it is fitted and judged on."""

    model: Any
    tokenizer: Any
    fit_rows: Any
    novels: Any
    wikipedia: Any
    questions: dict[str, list[Question]]
    documents: int
    losses: dict[str, dict[frozenset[int], float]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, each: int, documents: int) -> Setting:
        """Load the model and the texts."""
        from swm.models.load import load_model
        from swm.settings import FIT_TOKENS
        from swm.texts.calibration import fit_tokens, perplexity_tokens

        model, tokenizer = load_model(name)
        rows = fit_tokens(tokenizer, "lambada", LENGTH, SEED, FIT_TOKENS * 4 // 3, 10)
        held_out = len(rows) // 4
        some = {name: random.Random(0).sample(items, min(each, len(items))) for name, items in questions().items()}
        wikipedia = perplexity_tokens(tokenizer, "squad")
        return cls(model, tokenizer, rows[held_out:], rows[:held_out], wikipedia, some, documents)


def main() -> None:
    """Measure all candidates at every depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", default="24,20")
    parser.add_argument("--candidates", type=int, default=15)
    parser.add_argument("--budget", type=int, default=300, help="plans that the search tries")
    parser.add_argument("--questions", type=int, default=100, help="of each set")
    parser.add_argument("--documents", type=int, default=100, help="of each task")
    parser.add_argument("--heal", type=int, default=0, metavar="STEPS")
    options = parser.parse_args()
    setting = Setting.of(options.model, options.questions, options.documents)
    for layers in map(int, options.layers.split(",")):
        found: dict[str, dict[str, float]] = {}
        for plan in candidates(setting, layers, options.budget, options.candidates):
            found[named(plan)] = measured(setting, fitted(setting, plan))
            print(f"{layers} layers {named(plan):32} {told(found[named(plan)])}", flush=True)
        chosen = summary(layers, found)
        for name in dict.fromkeys(chosen.values() if options.heal else ()):
            result = measured(setting, healed(setting, name, options.heal))
            print(f"{layers} layers {name:32} {told(result)} after {options.heal} steps", flush=True)


def candidates(setting: Setting, layers: int, budget: int, most: int) -> list[MergePlan]:
    """Plans that the search tried, those of lowest loss first."""
    from swm.models.decoder import layer_count
    from swm.planners.plan_with import plan_with
    from swm.texts.calibration import calibration_tokens, fit_tokens

    count = layer_count(setting.model)
    text = partial(fit_tokens, setting.tokenizer, "lambada", LENGTH, SEED)
    tokens = calibration_tokens(setting.tokenizer, "lambada", 10, LENGTH, SEED)
    losses, fit = setting.losses, lambda tokens: text(tokens, 10)
    plan_with("best", setting.model, tokens, layers, SEED, fast=True, budget=budget, fit_tokens=fit, losses=losses)
    tried = {key: loss for kind, each in losses.items() if kind.startswith("fit") for key, loss in each.items()}
    ordered = sorted((key for key in tried if len(key) == count - layers and 0 not in key), key=lambda key: tried[key])
    near = [key for key in ordered if tried[key] <= tried[ordered[0]] + SPREAD]
    first = round(BEST_SHARE * most)
    step = max(1, math.ceil(len(near[first:]) / (most - first)))
    return [replace(dropped_plan(count, key), rule="fit") for key in [*near[:first], *near[first::step]]]


def fitted(setting: Setting, plan: MergePlan) -> Any:
    """The plan's model, fitted in full."""
    from swm.merging.fit import apply_fitted_plan

    return apply_fitted_plan(setting.model, plan, setting.fit_rows)


def healed(setting: Setting, name: str, steps: int) -> Any:
    """The same, healed with preset quick."""
    import torch

    from swm.healing.rows import training_rows
    from swm.models.decoder import layer_count
    from swm.plan import parse_windows
    from swm.settings import preset_settings
    from swm.texts.documents import recovery_examples

    plan = MergePlan(layer_count(setting.model), parse_windows(name), "fit")
    settings = preset_settings("quick", seed=SEED)
    rows = training_rows(setting.tokenizer, recovery_examples(settings.texts, SEED), settings)[settings.held_out :]
    ids = torch.tensor([row["input_ids"] for row in rows])
    return heal(fitted(setting, plan), plan, "lora", ids, settings, steps, 0.0)


def measured(setting: Setting, model: Any) -> dict[str, float]:
    """Two objectives and both judges: losses in nats per token, log-probabilities in nats."""
    from swm.evaluation.continuous import choice_logprob
    from swm.evaluation.perplexity import perplexity

    found = log_likelihoods(model, setting.tokenizer, setting.questions)
    by_set = [
        statistics.fmean(choice_logprob(each, item[2]) for each, item in zip(found[name], items, strict=True))
        for name, items in setting.questions.items()
    ]
    return {
        "novels": math.log(perplexity(model, setting.novels)["value"]),
        "questions": statistics.fmean(by_set),
        "wikipedia": math.log(perplexity(model, setting.wikipedia)["value"]),
        "tasks": answered(model, setting.tokenizer, setting.documents)["choice"],
    }


def summary(layers: int, found: Mapping[str, dict[str, float]]) -> dict[str, str]:
    """Print the correlations, and return the plan that each objective would choose."""
    from scipy.stats import spearmanr

    ranks = {name: ranked(found, name) for name in ("novels", "questions")}
    for place, values in enumerate(found.values()):
        values["both"] = statistics.fmean(rank[place] for rank in ranks.values())
    chosen = {}
    for objective in OBJECTIVES:
        agreement = [spearmanr(ranked(found, objective), ranked(found, judge)).statistic for judge in JUDGES]
        chosen[objective] = min(found, key=lambda name: found[name][objective] * sign(objective))
        agrees = ", ".join(f"{judge} {value:+.2f}" for judge, value in zip(JUDGES, agreement, strict=True))
        print(f"{layers} layers, {objective}: agrees with {agrees}; chooses {chosen[objective]}", flush=True)
    return chosen


def ranked(found: Mapping[str, dict[str, float]], name: str) -> Sequence[float]:
    """The candidates' ranks by a measure, 1 the best."""
    from scipy.stats import rankdata

    return [float(rank) for rank in rankdata([sign(name) * values[name] for values in found.values()])]


def sign(name: str) -> int:
    return 1 if name in LOWER_IS_BETTER else -1


def named(plan: MergePlan) -> str:
    return ",".join(f"{window.first}-{window.last}" for window in plan.windows)


def told(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {values[name]:.4f}" for name in ("novels", "wikipedia", "questions", "tasks"))


if __name__ == "__main__":
    main()
