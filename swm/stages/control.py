"""The control of a healed run: heals the original in the same way, and evaluates it on the same documents."""

from __future__ import annotations

from swm.stages.run import Watched, run_pipeline
from swm.workspace.controls import planned_control
from swm.workspace.runs import BASELINE, Run


def make_control(run: Run, watched: Watched) -> Run:
    """The run's control; what exists of it is resumed.

    Raises:
        ExperimentError: if the run is not healed, or is itself a control.
    """
    control, settings = planned_control(run)
    scores = run.scores() or run.experiment.run(BASELINE).scores() or {"limit": 100}
    with watched(control, "run") as progress:
        run_pipeline(control, scores["limit"], settings, progress)
    return control
