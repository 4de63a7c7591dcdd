"""What a new experiment shows first: its map, then a plan, then all else, with the model loaded once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from swm.disk.machine import is_out_of_memory
from swm.errors import ModelError, PlanError
from swm.progress import Progress
from swm.settings import DEFAULT_THRESHOLD
from swm.similarity.measure import Measure
from swm.stages.loading import load_original
from swm.stages.measure import measure_experiment
from swm.stages.measure_plan import measured_path
from swm.stages.plan import plan_for
from swm.workspace.estimate import ONE_PLAN_RUNS
from swm.workspace.experiments import Experiment

log = logging.getLogger(__name__)
PLAN_SECONDS = 120.0  # longest that the first plan may be expected to take, if each pass takes as long as the map


def first_look(experiment: Experiment, measures: Sequence[Measure], progress: Progress) -> dict[str, Any]:
    """The first measure's similarity; then the plan at the usual threshold where that is quick, and the other measures.

    The plan gets its perplexity and its model's words.
    """
    progress(0, 0, "loading the model")
    loaded = load_original(experiment, offload=True)
    first = measure_experiment(experiment, measures[0], progress, loaded, cost=False)
    if ONE_PLAN_RUNS * first["conditions"]["seconds"] <= PLAN_SECONDS:
        try:
            step = plan_for(experiment, threshold=DEFAULT_THRESHOLD, progress=progress, load=lambda: loaded)
            measured_path(experiment, step.plan, progress, loaded, answers=True)
        except Exception as error:  # windows that cannot merge, or need more memory: Preview says so when asked
            if not isinstance(error, (PlanError, ModelError)) and not is_out_of_memory(error):
                raise
            log.info("No first plan: %s", error)
    for measure in measures[1:]:
        measure_experiment(experiment, measure, progress, loaded)
    return first
