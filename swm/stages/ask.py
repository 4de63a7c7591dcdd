"""Models of several runs for a typed prompt, one after the other, with the original loaded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swm.errors import PlanError
from swm.merging.apply import apply_plan
from swm.models.offload import is_offloaded
from swm.stages.loading import load_original, load_run
from swm.stages.search import bench_for
from swm.workspace.experiments import Experiment
from swm.workspace.runs import Run


def models_of(
    experiment: Experiment, names: Sequence[str]
) -> Iterator[tuple[Run, PreTrainedModel, PreTrainedTokenizerBase]]:
    """Each run with its model and tokenizer; a run whose model was not saved is merged in memory, and not healed.

    Raises:
        PlanError: if such a run also cuts width, or the original does not fit in memory.
    """
    original = cache(lambda: load_original(experiment, offload=True))
    for run in map(experiment.run, names):
        if run.is_baseline or run.has_model:
            yield run, *(original() if run.is_baseline else load_run(run))
            continue
        model, tokenizer = original()
        if run.plan.width.ratio or is_offloaded(model):
            raise PlanError(
                f"Run {run.name} has no model, and cannot be merged in memory. Merge it first: python -m swm merge "
                f"{experiment.name} {run.name} ..."
            )
        merged = apply_plan(model, run.plan, bench_for(experiment, run.plan.rule, (model, tokenizer)).make)
        yield run, merged, tokenizer
