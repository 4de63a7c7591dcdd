"""The smallest plan whose perplexity stays within a factor of the original's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from swm.errors import PlanError
from swm.models.processes import agreed
from swm.progress import Progress, named, no_progress, share_of
from swm.search.kept_path import kept_path
from swm.search.threshold_path import PlanAt
from swm.stages.plan import settled
from swm.stages.search import search_path
from swm.workspace.experiments import Experiment

GIVEN_UP = 8  # numbers of layers in a row that a method cannot leave
T = TypeVar("T")
Planned = Callable[[int, Progress], dict[str, Any]]


def first_found(find: Callable[..., T], counts: Iterable[int | None], **more: Any) -> T:
    """The plan for the first of the layer counts that has one; else raises the first one's PlanError."""
    first: PlanError | None = None
    for count in counts:
        try:
            return find(count, **more)
        except PlanError as error:
            first = first or error
    raise first or PlanError("No number of layers meets this target.")


def walk_within(
    experiment: Experiment, factor: float, rule: str, progress: Progress = no_progress, precision: str = "auto"
) -> PlanAt:
    """The smallest plan of the threshold path within `factor` times the original's perplexity; searches the path.

    Raises:
        PlanError: if no plan of the path is within.
    """
    path = agreed(kept_path(experiment, rule))
    if path is None or not (path.is_complete or experiment.read_only):
        path = search_path(experiment, rule, path.low if path else 0.5, progress=progress, precision=precision)
    step = path.smallest_within(factor)
    if step and not experiment.read_only:
        step = settled(experiment, path, lambda path: path.smallest_within(factor), progress)
    if step is None:
        raise _nothing_within(factor, f"No plan of rule {rule}")
    return step


def smallest_within(
    factor: float, layer_count: int, planned: Planned, progress: Progress = no_progress
) -> dict[str, Any]:
    """The plan with the fewest layers whose perplexity is at most `factor` times the original's.

    Removes 1, 2, 4, ... layers until a plan is not within, then halves the gap. So it takes for granted that a method's
    perplexity rises with every layer it removes, which holds but for small steps. A number of layers that the method
    cannot leave is passed over for the nearest one.

    Args:
        planned: a planner's plan with this many layers left, as from `plan_by`; reports its own progress.

    Raises:
        PlanError: if no plan is within, or the method finds none.
    """
    within, fitting, beyond, failed = 0, {}, layer_count - 1, False  # planners leave two layers at least
    searches, most = 0, max(1, 2 * math.ceil(math.log2(layer_count)))
    impossible: dict[int, PlanError] = {}
    in_a_row = 0
    while in_a_row < GIVEN_UP and (untried := sorted(set(range(within + 1, beyond)) - set(impossible))):
        aim = (within + beyond) // 2 if failed else min(max(1, 2 * within), beyond - 1)
        removed = min(untried, key=lambda count: abs(count - aim))
        part = share_of(progress, min(1.0, searches / most), min(1.0, (searches + 1) / most))
        searches += 1
        try:
            data = planned(layer_count - removed, named(f"{layer_count - removed} layers", part))
        except PlanError as error:
            impossible[removed], in_a_row = error, in_a_row + 1
            continue
        in_a_row = 0
        if data["perplexity"] <= factor * data["perplexity_original"]:
            within, fitting = removed, data
        else:
            beyond, failed = removed, True
    if fitting:
        return fitting
    if impossible and not failed:
        raise next(iter(impossible.values()))
    raise _nothing_within(factor, f"Even with {layer_count - beyond} of {layer_count} layers, no plan")


def _nothing_within(factor: float, what: str) -> PlanError:
    return PlanError(
        f"{what} has at most {factor:g} times the original's perplexity on the calibration text. Allow a larger loss, "
        "or choose another method."
    )
