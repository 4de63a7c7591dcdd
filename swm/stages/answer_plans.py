"""Lets the model of each plan continue the sample prompts, so that the preview can show what merging does to it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.errors import ModelError, PlanError
from swm.evaluation.answers import sample_answers
from swm.merging.apply import apply_plan
from swm.merging.merged_layer import MergedLayer
from swm.models.offload import is_offloaded
from swm.models.processes import agreed, is_first, shared, world_size
from swm.plan import MergePlan, Window
from swm.progress import Progress
from swm.search.kept_path import kept_answers, original_answers, save_answers
from swm.workspace.experiments import Experiment
from swm.workspace.units import duration

log = logging.getLogger(__name__)

SAVE_SECONDS = 2.0


def answer_plans(
    experiment: Experiment,
    plans: Sequence[MergePlan],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    make: Callable[[Window], MergedLayer] | None,
    progress: Progress,
) -> None:
    """Keep what the original and the model of each plan write after the sample prompts; known plans are skipped.

    Args:
        plans: with one rule.
        make: makes the merged layer of a window if the rule needs more than the weights.
    """
    original = MergePlan(plans[0].layer_count, (), plans[0].rule)
    kept = agreed(kept_answers(experiment, original.rule))
    if known := agreed(original_answers(experiment)):
        kept.of.setdefault((), known)
    left = [plan for plan in dict.fromkeys([original, *plans]) if plan.windows not in kept.of]
    if is_offloaded(model):
        log.info("The model is not in memory as a whole, so the plans are not asked to continue prompts.")
        return
    start = saved = time.monotonic()

    def answers(plans: list[MergePlan]) -> list[list[str]]:
        return [_answers(model, tokenizer, plan, make) for plan in plans]

    def save() -> None:
        if left and is_first():
            save_answers(experiment, kept)

    try:
        for done in range(0, len(left), world_size()):
            rest = (time.monotonic() - start) / done * (len(left) - done) if done else 0.0
            about = f", about {duration(rest)} left" if rest else ""
            progress(done, len(left), f"prompts continued by plan {done + 1} of {len(left)}{about}")
            plans = left[done : done + world_size()]
            kept.of |= dict(zip((plan.windows for plan in plans), shared(plans, answers), strict=True))
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    finally:
        save()


def _answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: MergePlan,
    make: Callable[[Window], MergedLayer] | None,
) -> list[str]:
    """What the plan's model writes; nothing if it cannot generate or be saved."""
    try:
        return sample_answers(apply_plan(model, plan, make), tokenizer)
    except (ModelError, PlanError) as error:
        log.info("Windows %s answer nothing: %s", ", ".join(map(str, plan.windows)), error)
        return []
