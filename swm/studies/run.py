"""Studies: every method at several depths, before and after healing, on one model. Each cell is an ordinary run.

An interrupted study resumes: existing results of its runs are not computed again.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache, partial
from typing import Any

from swm.errors import ModelError, PlanError, SettingsError, TextError
from swm.evaluation.tasks import check_request, zero_shot
from swm.plan import MergePlan
from swm.progress import Progress, no_progress, part_of
from swm.registry import PLANNERS
from swm.search.threshold_path import SEARCH_VERSION
from swm.settings import PERPLEXITY_TEXTS, RecoverySettings
from swm.stages.abilities import has_profile, profile_run
from swm.stages.evaluate import evaluate_run
from swm.stages.loading import load_original
from swm.stages.measure import measure_cost, measure_experiment
from swm.stages.measure_plan import measured_path
from swm.stages.merge import merge_run, merged_model
from swm.stages.plan import plan_for
from swm.stages.plan_by import plan_by
from swm.stages.plan_within import first_found, smallest_within, walk_within
from swm.stages.search import search_path
from swm.stages.time import take_timing, time_run
from swm.studies.grids import Cell, Grid, ThresholdGrid, cells_of, parsed_grid, tasks_of
from swm.workspace.controls import CONTROL
from swm.workspace.experiments import PLANS_VERSION, Experiment
from swm.workspace.recipe import recipe_of
from swm.workspace.runs import BASELINE, Run
from swm.workspace.targets import LEAST_LAYERS, LOSS, check_meets, most_layers

FOUND_BY = f"search {SEARCH_VERSION}, planners {PLANS_VERSION}"  # depths of losses found by others are found again
CELL_ERRORS = (PlanError, ModelError, TextError, SettingsError)  # the other cells can continue


def run_study(
    experiment: Experiment, kind: str, grid: dict[str, Any], progress: Progress = no_progress
) -> dict[str, str]:
    """Run the unfinished cells of a grid.

    Args:
        grid: as from `grid_files.read_grid`.

    Returns:
        The failed cells, with the reason: for example a method that finds no such plan, or a rule that does not work
        with the model.
    """
    parsed = parsed_grid(kind, grid)
    if tasks := tasks_of(parsed):  # an invalid grid must not replace the last one
        check_request(tasks, None)
    if isinstance(parsed, Grid):
        if parsed.speedup and not experiment.cost():
            _measure_speed(experiment, progress)
        parsed.cells(experiment.model_facts, experiment.cost())
    experiment.save_study(kind, {**(experiment.study(kind) or {}), "failed": {}, "grid": grid})  # pages show this grid
    if isinstance(parsed, Grid):
        failed = _study_runs(experiment, kind, parsed, progress)
    elif isinstance(parsed, ThresholdGrid):
        failed = _study_thresholds(experiment, parsed, progress)
    else:
        failed = {}
        for place, how in enumerate(parsed.measures):
            if not experiment.similarity(how.name):
                measure_experiment(experiment, how, part_of(progress, place, len(parsed.measures), how.texts))
    experiment.save_study(kind, {**(experiment.study(kind) or {}), "failed": failed, "grid": grid})
    return failed


def _study_thresholds(experiment: Experiment, grid: ThresholdGrid, progress: Progress) -> dict[str, str]:
    failed: dict[str, str] = {}
    if grid.low is not None:
        parts = len(grid.rules) * (2 if grid.scored_at else 1)
        for place, rule in enumerate(grid.rules):
            try:
                search_path(experiment, rule, grid.low, progress=part_of(progress, place, parts, rule))
            except CELL_ERRORS as error:
                failed[rule] = str(error)
        progress = part_of(progress, 1, 2, "scores")
    if grid.scored_at:
        failed |= _score_thresholds(experiment, grid, [rule for rule in grid.rules if rule not in failed], progress)
    return failed


def _score_thresholds(
    experiment: Experiment, grid: ThresholdGrid, rules: list[str], progress: Progress
) -> dict[str, str]:
    """Score the plans at the grid's thresholds, each plan once, saving each score with the study; returns failures."""
    kept = experiment.study("thresholds") or {}
    conditions, scores = {"task": grid.task, "limit": grid.limit}, list(kept.get("scores", []))
    by_plan = {_plan_key(row): row for row in scores if _holds(row, conditions)}
    cells = [(rule, threshold) for rule in rules for threshold in grid.scored_at]
    failed, original = {}, cache(partial(load_original, experiment))
    for place, (rule, threshold) in enumerate(cells):
        report = part_of(progress, place, len(cells), f"{rule} at {threshold:g}")
        entry = {"rule": rule, "threshold": threshold, **conditions}
        try:
            step = plan_for(experiment, threshold=threshold, rule=rule, progress=report, load=original)
            plan = step.plan
            if step.perplexity is None:
                measured_path(experiment, plan, report, original())
            new = {**entry, "layers": plan.layers_left, "windows": plan.to_dict()["windows"]}
            if any(_holds(row, new) for row in scores):
                continue
            if _plan_key(new) not in by_plan:
                model, tokenizer = original()
                merged = merged_model(experiment, model, tokenizer, plan, report)
                by_plan[_plan_key(new)] = zero_shot(merged, tokenizer, [grid.task], grid.limit, report)[0].entry()
        except CELL_ERRORS as error:  # concerns this plan alone
            failed[f"{rule} at {threshold:g}"] = str(error)
            continue
        scores = [row for row in scores if not _holds(row, entry)]  # drops the score of an earlier plan
        scores.append({**by_plan[_plan_key(new)], **new})
        experiment.save_study("thresholds", {**kept, "scores": scores})
    return failed


def _holds(row: dict[str, Any], entries: dict[str, Any]) -> bool:
    return all(row.get(name) == value for name, value in entries.items())


def _plan_key(score: dict[str, Any]) -> tuple[str, str]:
    """A key that is equal for equal merged models: without windows, the rule makes no difference."""
    return score["rule"] if score["windows"] else "", str(score["windows"])


def _study_runs(experiment: Experiment, kind: str, grid: Grid, progress: Progress) -> dict[str, str]:
    failed = _find_depths(experiment, kind, grid, progress)
    cells = cells_of(experiment, kind, grid)
    original = experiment.run(BASELINE)
    _score(original, _with_own_tasks(original, grid), part_of(progress, 0, len(cells) + 1, "original"))
    for place, cell in enumerate(cells, 1):
        try:
            _run_cell(experiment, cell, grid, part_of(progress, place, len(cells) + 1, cell.run))
        except CELL_ERRORS as error:
            failed[cell.run] = str(error)
    return failed


def _measure_speed(experiment: Experiment, progress: Progress) -> None:
    progress(0, 0, "loading the model")
    measure_cost(experiment, load_original(experiment, offload=True), progress)
    if not experiment.cost():
        raise SettingsError(
            "speedup: the original's speed cannot be measured: its weights do not fit into memory, or it keeps no "
            "cache between tokens. Choose other depths."
        )


def _find_depths(experiment: Experiment, kind: str, grid: Grid, progress: Progress) -> dict[str, str]:
    """Find each method's own depth for each target that depends on the plan, saving it with the study.

    Returns the failures.
    """
    kept = experiment.study(kind) or {}
    failed, known = {}, kept.get("within", {}) if kept.get("found_by") == FOUND_BY else {}
    within = {method: {**known.get(method, {})} for method in {**known, **dict.fromkeys(grid.methods)}}
    wanted = [(method, target) for method in grid.methods for target in grid.own_depths(experiment.model_facts)]
    for place, (method, (name, kind_of, value)) in enumerate(wanted):
        if name in within[method]:
            continue
        said = f"{method} within {name}"
        report = part_of(progress, place, len(wanted), said)
        try:
            if kind_of == LOSS:
                within[method][name] = _layers_within(experiment, method, value, report)
            else:
                within[method][name] = _layers_meeting(experiment, method, kind_of, value, grid.cache_tokens, report)
        except CELL_ERRORS as error:
            failed[said] = str(error)
        experiment.save_study(kind, {**(experiment.study(kind) or {}), "within": within, "found_by": FOUND_BY})
    return failed


def _layers_within(experiment: Experiment, method: str, factor: float, progress: Progress) -> int:
    """Layers of a method's smallest plan within a factor of the original's perplexity on the calibration text."""
    if method not in PLANNERS:
        return walk_within(experiment, factor, method, progress).plan.layers_left
    planned = partial(plan_by, experiment, method)
    data = smallest_within(factor, experiment.layer_count, lambda n, part: planned(n, progress=part), progress)
    return MergePlan.from_dict(data).layers_left


def _layers_meeting(
    experiment: Experiment, method: str, kind: str, value: float, cache_tokens: int, progress: Progress
) -> int:
    """The most layers with which a method's plan meets a target of memory or parameters."""
    facts = experiment.model_facts
    most = most_layers(facts, kind, value, None, cache_tokens) or 0

    def found(layers: int) -> int:
        plan = _plan_of(experiment, method, layers, progress)[0]
        check_meets(facts, kind, value, plan, cache_tokens)
        return layers

    try:
        return first_found(found, range(most, LEAST_LAYERS - 1, -1))
    except PlanError as error:
        raise PlanError(f"No plan with {most} layers or fewer meets it. With the most: {error}") from None


def _run_cell(experiment: Experiment, cell: Cell, grid: Grid, progress: Progress) -> None:
    """Merge, score, heal, score again: whatever is missing or belongs to another grid."""
    run = _planned(experiment, cell, progress)
    grid = _with_own_tasks(run, grid)
    recovery = cell.recovery or recipe_of(run).recovery  # a run healed by another grid stays healed
    begin = _has_to_begin(run, grid, recovery, cell.method != CONTROL)
    if not begin and _is_scored(run, grid) and (run.stage == "recovered" or not recovery):
        return
    if recovery:
        from swm.stages.recover import check_target, recover_run  # peft and the Trainer take seconds to import

        check_target(recovery, run.plan)
    if begin:
        merge_run(run, progress)
    if run.stage == "merged" and not run.settings.get("recovery_started") and cell.method != CONTROL:
        _score(run, grid, progress)
    if recovery and (run.stage == "merged" or not (run.has_model or _is_scored(run, grid))):
        recover_run(run, recovery, progress)
    _score(run, grid, progress)
    if not grid.keep_models:
        shutil.rmtree(run.model_folder, ignore_errors=True)
        shutil.rmtree(run.folder / "recovery", ignore_errors=True)


def _has_to_begin(run: Run, grid: Grid, recovery: RecoverySettings | None, needs_scores_before: bool) -> bool:
    if run.stage == "merged":
        return not run.has_model and not _is_scored(run, grid)
    if run.stage == "recovered":
        scored = _fits(run.scores_before_recovery(), grid) and _is_profiled(run, grid, before_healing=True)
        return recovery != recipe_of(run).recovery or (needs_scores_before and not scored)
    return True


def _planned(experiment: Experiment, cell: Cell, progress: Progress) -> Run:
    if (experiment.folder / "runs" / cell.run / "run.json").is_file():
        run = experiment.run(cell.run)
        if run.settings.get("method") != cell.method:
            raise SettingsError(
                f"Run {cell.run} already exists, but not from a study. Delete it, or remove it from the grid."
            )
        return run
    plan, threshold, similarity = _plan_of(experiment, cell.method, cell.layers, progress)
    return experiment.create_run(cell.run, replace(plan, width=cell.width), threshold, similarity, cell.method)


def _plan_of(
    experiment: Experiment, method: str, layers: int, progress: Progress
) -> tuple[MergePlan, float | None, float | None]:
    """A method's plan with so many layers, its threshold and its similarity."""
    if method == CONTROL:
        return MergePlan(experiment.layer_count), None, 1.0
    if method in PLANNERS:
        data = plan_by(experiment, method, layers, progress=progress, brief=True)
        return MergePlan.from_dict(data), None, data["similarity"]
    step = plan_for(experiment, layers=layers, rule=method, progress=progress)
    return step.plan, step.threshold, step.similarity


def _score(run: Run, grid: Grid, progress: Progress) -> None:
    if not _fits(run.scores(), grid):
        evaluate_run(run, grid.tasks, grid.limit, progress)
    if grid.time and not _is_study_control(run) and not take_timing(run):
        time_run(run, progress=progress)
    if not _is_profiled(run, grid):
        profile_run(run, grid.abilities, grid.requests, progress)


def _with_own_tasks(run: Run, grid: Grid) -> Grid:
    """The grid; if it has no tasks, with those that the run has scores of, so that they stay as they are."""
    scores = run.scores() or run.scores_before_recovery()
    if grid.tasks or not scores or not scores["tasks"]:
        return grid
    return replace(grid, tasks=tuple(scores["tasks"]), limit=scores["limit"])


def _is_profiled(run: Run, grid: Grid, before_healing: bool = False) -> bool:
    return not grid.abilities or has_profile(run, grid.abilities, grid.requests, before_healing)


def _is_study_control(run: Run) -> bool:
    """Whether it is a control that a study made: it is not timed, because healing does not change the speed."""
    return run.settings.get("method") == CONTROL


def _is_scored(run: Run, grid: Grid) -> bool:
    """Whether it has all results that the grid requires; copies the timing of an equal run."""
    timed = not grid.time or _is_study_control(run) or take_timing(run)
    return timed and _fits(run.scores(), grid) and _is_profiled(run, grid)


def _fits(scores: dict[str, Any] | None, grid: Grid) -> bool:
    """Whether scores are for the grid's tasks, documents and texts, so that one chart can show them."""
    if scores is None or scores["limit"] != grid.limit:
        return False
    return set(scores["tasks"]) == set(grid.tasks) and set(PERPLEXITY_TEXTS) <= set(scores["perplexity"])
