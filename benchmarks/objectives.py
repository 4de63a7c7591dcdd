"""What plans should be judged by: perplexity of calibration text, choice log-probability on questions, or both.

    python -m swm plan EXP --planner best --layers 24     # and 20: finds the candidates
    python benchmarks/objectives.py EXP [--layers 24,20] [--candidates 15] [--heal 60]

Candidates are plans that the planner tried, two thirds of them its best ones, the others spread over those up to
half a nat worse; each is fitted in full. Objectives, from what a search could look at:
- novels: loss of held-out texts of the kind it searches and fits on (LAMBADA).
- questions: choice log-probability on questions outside the seven tasks (COPA, MMLU, SciQ, CommonsenseQA, Social IQa).
- both: the mean of the two ranks.
Judges, which no objective sees: loss of Wikipedia (SQuAD) and choice log-probability over the seven tasks. Prints a
line for each candidate, each objective's rank correlation with each judge, and what it would have chosen. With --heal,
all candidates are healed by that many steps of preset quick, and judged again. In bfloat16 where that is faster.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.healing_ways import answered, heal
from benchmarks.questions import Question, log_likelihoods, questions
from swm.plan import MergePlan, dropped_plan
from swm.search.tried import TriedPlans
from swm.workspace.experiments import Experiment

SEED = 1234
SPREAD = 0.5  # nats up to which the further candidates are worse than the best one
BEST_SHARE = 2 / 3
OBJECTIVES, JUDGES = ("novels", "questions", "both"), ("wikipedia", "tasks", "healed wikipedia", "healed tasks")
HIGHER_IS_BETTER = ("questions", "tasks", "healed tasks")


@dataclass
class Setting:
    """What all candidates share: the model, and what it is fitted and judged on."""

    experiment: Experiment
    model: Any
    tokenizer: Any
    fit_rows: Any
    novels: Any
    wikipedia: Any
    questions: dict[str, list[Question]]
    documents: int

    @classmethod
    def of(cls, name: str, each: int, documents: int) -> Setting:
        """Load the model and the texts."""
        from swm.settings import FIT_TOKENS
        from swm.stages.loading import fit_tokens_of, load_original
        from swm.texts.calibration import perplexity_tokens

        experiment = Experiment.open(name)
        model, tokenizer = load_original(experiment)
        rows = fit_tokens_of(experiment, tokenizer, FIT_TOKENS * 4 // 3)
        held_out = len(rows) // 4
        some = {name: random.Random(0).sample(items, min(each, len(items))) for name, items in questions().items()}
        wikipedia = perplexity_tokens(tokenizer, "squad")
        return cls(experiment, model, tokenizer, rows[held_out:], rows[:held_out], wikipedia, some, documents)


def main() -> None:
    """Measure all candidates at every depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("--layers", default="24,20")
    parser.add_argument("--candidates", type=int, default=15)
    parser.add_argument("--questions", type=int, default=100, help="of each set")
    parser.add_argument("--documents", type=int, default=100, help="of each task")
    parser.add_argument("--heal", type=int, default=0, metavar="STEPS")
    options = parser.parse_args()
    setting = Setting.of(options.experiment, options.questions, options.documents)
    for layers in map(int, options.layers.split(",")):
        found: dict[str, dict[str, float]] = {}
        for plan in candidates(setting.experiment, layers, options.candidates):
            smaller = fitted(setting, plan)
            found[named(plan)] = result = objectives(setting, smaller) | judged(setting, smaller)
            print(f"{layers} layers {named(plan):32} {told(result)}", flush=True)
            if options.heal:
                after = judged(setting, healed(setting, plan, smaller, options.heal))
                result |= {f"healed {name}": value for name, value in after.items()}
                print(f"{layers} layers {named(plan):32} {told(after)} after {options.heal} steps", flush=True)
        summary(layers, found)


def candidates(experiment: Experiment, layers: int, most: int) -> list[MergePlan]:
    """Plans that were tried in the experiment, those of lowest loss first."""
    count = experiment.layer_count
    losses = TriedPlans(experiment).losses
    tried = {key: loss for kind, each in losses.items() if kind.startswith("fit") for key, loss in each.items()}
    ordered = sorted((key for key in tried if len(key) == count - layers and 0 not in key), key=lambda key: tried[key])
    near = [key for key in ordered if tried[key] <= tried[ordered[0]] + SPREAD]
    first = round(BEST_SHARE * most)
    step = max(1, math.ceil(len(near[first:]) / (most - first)))
    return [replace(dropped_plan(count, key), rule="fit") for key in [*near[:first], *near[first::step]]]


def fitted(setting: Setting, plan: MergePlan) -> Any:
    """The plan's model, fitted in full."""
    from swm.merging.fit import apply_fitted_plan
    from swm.models.load import fast_format

    return apply_fitted_plan(setting.model, plan, setting.fit_rows, fast=fast_format(setting.model))


def healed(setting: Setting, plan: MergePlan, smaller: Any, steps: int) -> Any:
    """A copy of the plan's model, healed with preset quick; the model itself shares weights with the original."""
    import torch

    from swm.healing.rows import training_rows
    from swm.settings import preset_settings
    from swm.texts.documents import recovery_examples

    settings = preset_settings("quick", seed=SEED)
    rows = training_rows(setting.tokenizer, recovery_examples(settings.texts, SEED), settings)[settings.held_out :]
    ids = torch.tensor([row["input_ids"] for row in rows])
    return heal(copy.deepcopy(smaller), plan, "lora", ids, settings, steps, 0.0)


def objectives(setting: Setting, model: Any) -> dict[str, float]:
    """What a search could look at: loss in nats per token, and choice log-probability in nats."""
    from swm.evaluation.paired import choice_logprob

    found = log_likelihoods(model, setting.tokenizer, setting.questions)
    by_set = [
        statistics.fmean(choice_logprob(each, item[2]) for each, item in zip(found[name], items, strict=True))
        for name, items in setting.questions.items()
    ]
    return {"novels": loss(model, setting.novels), "questions": statistics.fmean(by_set)}


def judged(setting: Setting, model: Any) -> dict[str, float]:
    """Both judges."""
    tasks = answered(model, setting.tokenizer, setting.documents)["choice"]
    return {"wikipedia": loss(model, setting.wikipedia), "tasks": tasks}


def loss(model: Any, rows: Any) -> float:
    """Nats per token."""
    import torch

    from swm.evaluation.perplexity import perplexity
    from swm.models.load import fast_format

    with torch.autocast(model.device.type, torch.bfloat16, enabled=fast_format(model)):
        return math.log(perplexity(model, rows)["value"])


def summary(layers: int, found: Mapping[str, dict[str, float]]) -> None:
    """Print each objective's correlations and the plan that it would choose."""
    from scipy.stats import spearmanr

    judges = [judge for judge in JUDGES if judge in next(iter(found.values()))]
    ranks = {name: ranked(found, name) for name in ("novels", "questions")}
    for place, values in enumerate(found.values()):
        values["both"] = statistics.fmean(rank[place] for rank in ranks.values())
    for objective in OBJECTIVES:
        agreement = [spearmanr(ranked(found, objective), ranked(found, judge)).statistic for judge in judges]
        chosen = min(found, key=lambda name: found[name][objective] * sign(objective))
        agrees = ", ".join(f"{judge} {value:+.2f}" for judge, value in zip(judges, agreement, strict=True))
        print(f"{layers} layers, {objective}: agrees with {agrees}; chooses {chosen}", flush=True)


def ranked(found: Mapping[str, dict[str, float]], name: str) -> Sequence[float]:
    """The candidates' ranks by a measure, 1 the best."""
    from scipy.stats import rankdata

    return [float(rank) for rank in rankdata([sign(name) * values[name] for values in found.values()])]


def sign(name: str) -> int:
    return -1 if name in HIGHER_IS_BETTER else 1


def named(plan: MergePlan) -> str:
    return ",".join(f"{window.first}-{window.last}" for window in plan.windows)


def told(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())


if __name__ == "__main__":
    main()
