"""The control of a healed run: heals the original in the same way, and scores it on the same documents and texts."""

from __future__ import annotations

from swm.evaluation.task_names import TASKS
from swm.progress import named
from swm.settings import PERPLEXITY_TEXTS
from swm.stages.evaluate import evaluate_run
from swm.stages.merge import merge_run
from swm.stages.recover import check_recovery_text, recover_run
from swm.stages.run import Watched
from swm.workspace.controls import planned_control
from swm.workspace.runs import BASELINE, Run


def make_control(run: Run, watched: Watched) -> Run:
    """The run's control, scored like the run, or else like the original; what exists of it is resumed.

    It is neither scored before healing nor timed: it is the original then, and healing does not change the speed.

    Raises:
        ExperimentError: if the run is not healed, or is itself a control.
        TextError: if the recovery text has changed since the run was healed.
    """
    control, settings = planned_control(run)
    check_recovery_text(run, settings)
    scores = run.scores() or run.experiment.run(BASELINE).scores() or {}
    tasks, texts = scores.get("tasks", TASKS), tuple(scores.get("perplexity", PERPLEXITY_TEXTS))
    limit = scores.get("limit", 100)
    with watched(control, "control") as progress:
        if control.stage == "planned":
            merge_run(control, named("merge", progress))
        if control.stage == "merged":
            recover_run(control, settings, named("recover", progress))
        own = control.scores()
        if not own or (own["limit"], {*own["tasks"]}, {*own["perplexity"]}) != (limit, {*tasks}, {*texts}):
            evaluate_run(control, tuple(tasks), limit, named("evaluate", progress), texts)
    return control
