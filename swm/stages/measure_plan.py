"""Measures similarity and perplexity of any plan."""

from __future__ import annotations

from typing import Any

from swm.errors import ModelError
from swm.merging.apply import check_plan
from swm.models.processes import agreed, is_first
from swm.plan import MergePlan
from swm.progress import Progress, no_progress
from swm.search.kept_path import save_path
from swm.search.threshold_path import ThresholdPath, known_similarity
from swm.stages.answer_plans import answer_plans
from swm.stages.search import WORST, Loaded, bench_for, measure_perplexities, path_to_extend, scorer_for
from swm.workspace.experiments import Experiment


def measure_plan(
    experiment: Experiment,
    plan: MergePlan,
    progress: Progress = no_progress,
    loaded: Loaded | None = None,
    *,
    answers: bool = True,
) -> dict[str, Any]:
    """Similarity and perplexity of any plan on the calibration text, saved with the path; and its model's answers.

    Raises:
        PlanError: if the merged model could not be saved, or not write.
        ModelError: if the merged model's numbers overflow.
    """
    path = measured_path(experiment, plan, progress, loaded, answers=answers and not experiment.read_only)
    if path.perplexities[plan.windows] >= WORST:
        raise ModelError(
            "The merged model's numbers overflow: its perplexity is too large to measure. Choose other windows or "
            "another rule, or create the experiment with --dtype float32."
        )
    perplexities = path.perplexities
    return {
        **plan.to_dict(),
        "similarity": known_similarity(path, plan),
        "perplexity": perplexities[plan.windows],
        "perplexity_original": perplexities[()],
    }


def measured_path(
    experiment: Experiment,
    plan: MergePlan,
    progress: Progress = no_progress,
    loaded: Loaded | None = None,
    *,
    answers: bool = False,
) -> ThresholdPath:
    """The path of the plan's rule, including the plan's similarity, and perplexities of the plan and the original.

    With `answers`, the plan's model also continues the sample prompts; see `answer_plans`.
    """
    progress(0, 2, "similarity" if loaded else "loading the model")
    bench = bench_for(experiment, plan.rule, loaded)
    check_plan(bench.model, plan)
    plan.check_keeps(bench.needed, type(bench.model).__name__)
    path = agreed(path_to_extend(experiment, bench.model, plan.rule))
    if not path.is_exact(plan):
        progress(0, 2, "similarity")
        scorer, above, window = scorer_for(bench, plan.rule), plan.windows[1:], plan.windows[0]
        path.keep(above, window, scorer.score(above, window), sure=path.scoring != "exact")
        path.layer_runs += scorer.layer_runs
    measure_perplexities(path, [MergePlan(plan.layer_count, (), plan.rule), plan], bench, progress)
    if not experiment.read_only and is_first():
        save_path(experiment, path)
    if answers:
        answer_plans(experiment, [plan], bench.model, bench.tokenizer, bench.make, progress)
    return path
