"""The button that makes a healed run's control: the original, healed in the same way."""

from __future__ import annotations

import streamlit as st

from pages.shared.plain import plain
from swm.jobs.child import start
from swm.plan import MergePlan
from swm.reporting.glossary import TERMS
from swm.workspace.controls import control_of, planned_control
from swm.workspace.estimate import about, estimate_run
from swm.workspace.recipe import recipe_of
from swm.workspace.runs import Run


def offer_control(run: Run, limit: int | None) -> None:
    """A button that makes the run's control, with its time; a line if it is done; nothing for other runs.

    Args:
        limit: documents per task that the run was scored on.
    """
    if run.stage != "recovered" or run.is_control:
        return
    control = control_of(run)
    if control and control.is_scored((run.scores() or {"tasks": ()})["tasks"], limit):
        st.caption(
            plain(f"Its control is run {control.name}: the original, healed in the same way."), help=TERMS["control"]
        )
        return
    label = f"Finish its control, {control.name}" if control else "Heal the original in the same way (control)"
    if st.button(label, key="run_control", icon=":material/balance:", help=TERMS["control"]):
        control, _ = planned_control(run)
        start(control, "control", ["control", run.experiment.name, run.name])
        st.session_state["run_next"] = control.name
        st.rerun()
    st.caption(f"Without a control, the training's own effect is credited to the merged model.{_time(run, limit)}")


def _time(run: Run, limit: int | None) -> str:
    """How long the control takes, if that is known."""
    experiment = run.experiment
    whole, recovery = MergePlan(experiment.layer_count), recipe_of(run).recovery
    needs = estimate_run(
        experiment.model_facts, experiment.cost(), whole, recovery, limit, experiment.folder, evaluations=1
    )
    seconds = sum(seconds for stage, seconds in needs.seconds.items() if stage != "time")
    return f" Takes {about(seconds)}." if seconds else ""
