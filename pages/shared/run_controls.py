"""The buttons of a run: its stages, duplicating it, and what manages it."""

from __future__ import annotations

import streamlit as st

from pages.shared.control import offer_control
from pages.shared.manage_run import manage
from swm.jobs.child import start
from swm.llama_cpp.client import client_missing
from swm.reporting.commands import plan_arguments, recovery_arguments
from swm.workspace.runs import BASELINE, Run

NEW, REMAINING, IN_LLAMA_CPP = "new run", "Run the remaining steps", "Measure in llama.cpp"


def controls(run: Run) -> None:
    """A button for each stage that can start now, and one to duplicate the run."""
    buttons = st.container(horizontal=True, vertical_alignment="center")
    finished = _is_finished(run)
    for label, arguments in _actions(run).items():
        allowed = run.stage == "planned" if label == "Merge" else run.stage != "planned"
        if label == REMAINING:
            allowed = not finished
        missing = client_missing() if label == IN_LLAMA_CPP else ""
        if buttons.button(label, key=f"run_do_{label}", disabled=not allowed or bool(missing), help=missing or None):
            start(run, arguments[0], arguments)
            st.rerun()
    if buttons.button("Duplicate and edit", key="run_duplicate"):
        duplicate(run, ",".join(map(str, run.plan.windows)))
    if (chosen := manage(run, buttons)) is not None:
        st.session_state["run_next"] = chosen or NEW
        st.rerun()
    st.caption(
        "The other steps need the merged model."
        if run.stage == "planned"
        else f"Merged already.{' No steps remain.' if finished else ''}"
    )
    if missing := client_missing() if run.stage != "planned" else "":
        st.caption(f"{IN_LLAMA_CPP} is off. {missing}")
    offer_control(run, usual_limit(run))


def _is_finished(run: Run) -> bool:
    last = "merged" if _stays_unhealed(run) else "recovered"
    return (
        run.stage == last and not run.settings.get("recovery_started") and run.is_evaluated and run.timing() is not None
    )


def _stays_unhealed(run: Run) -> bool:
    """Whether it was made without healing, and none was begun."""
    return bool(run.settings.get("unhealed")) and not (
        run.settings.get("recovery_started") or run.settings.get("recovery")
    )


def _actions(run: Run) -> dict[str, list[str]]:
    """The arguments of each button's command."""
    name, limit = (run.experiment.name, run.name), limit_arguments(usual_limit(run))
    unfinished = run.settings.get("recovery_started")
    recovery = unfinished or run.settings.get("recovery")
    heal = recovery_arguments(recovery) if recovery else ["--preset", "quick"]
    again = ["--again"] if run.stage == "recovered" else []
    return {
        "Merge": ["merge", *name, *plan_arguments(run.plan)],
        "Resume healing" if unfinished else "Heal with LoRA": ["recover", *name, *heal, *again],
        "Evaluate": ["evaluate", *name, *limit],
        "Measure abilities": ["abilities", *name, "--abilities", "all"],
        "Measure speed": ["time", *name],
        IN_LLAMA_CPP: ["time", *name, "--client", "llama.cpp"],
        REMAINING: ["run", *name, *(["--no-recovery"] if _stays_unhealed(run) else heal), *limit],
    }


def duplicate(run: Run, windows: str) -> None:
    """Open the form of a new run, filled in with this run's settings."""
    recovery = run.settings.get("recovery") or run.settings.get("recovery_started")
    for key in [key for key in st.session_state if str(key).startswith("run_")]:
        del st.session_state[key]
    st.session_state.update(
        run_next=NEW,
        run_template={
            "windows": windows,
            "merge_by": run.plan.rule,
            "width": run.plan.width,
            "limit": usual_limit(run),
            "recovery": recovery,
        },
    )
    st.rerun()


def usual_limit(run: Run) -> int | None:
    """Documents per task that the run, or else the original, was scored on; None for all."""
    scores = run.scores() or run.experiment.run(BASELINE).scores() or {"limit": 100}
    limit: int | None = scores["limit"]
    return limit


def limit_arguments(limit: int | None) -> list[str]:
    return ["--limit", "none" if limit is None else str(limit)]
