"""What the Run page shows of a run: its stages, and what changes while its job runs."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import streamlit as st

from pages.shared.frame import duration, time_left
from pages.shared.plain import plain
from swm.registry import MERGE_RULES, as_sentence
from swm.reporting.charts import loss_chart
from swm.reporting.glossary import title_of
from swm.reporting.names import stage_name
from swm.workspace.estimate import training_speed
from swm.workspace.runs import Run
from swm.workspace.state import State
from swm.workspace.units import gib

DONE, OPEN = ":material/check_circle:", ":material/radio_button_unchecked:"
SMOOTHED = 10  # steps: the loss of one batch says little
RUNNING = ":material/progress_activity:"
STAGE_OF_JOB = {"merge": "Merge", "recover": "Heal with LoRA", "evaluate": "Evaluate", "time": "Measure speed"}


def stage_now(state: State) -> str | None:
    """The stage that a job works on: its own, or the one that a job of all stages names first in its text."""
    return STAGE_OF_JOB.get((state.text if state.stage == "run" else state.stage).split(":")[0].split(" ")[0])


def show_stages(run: Run) -> None:
    """The run's stages: which are done and how long they took, which runs now, and what a closed tab keeps."""
    took, state = _stages_took(run), run.state()
    now = stage_now(state) if state.active else None
    with st.container(horizontal=True):
        for stage, time in took.items():
            icon = RUNNING if stage == now else DONE if time else OPEN
            said = " · ".join(["running", *time_left(state)]) if stage == now else time
            st.markdown(f"{icon} {stage}" + (f" :gray[{said}]" if said and said != "done" else ""))
    if state.stage == "run" and state.status == "done":
        st.caption("The job's time also covers loading, saving, and evaluating the original if needed.")
    if state.active:
        st.caption("You can close this page: the job goes on by itself, and every finished step is kept.")


def _stages_took(run: Run) -> dict[str, str]:
    """How long each stage took; empty if it is not done."""
    recovery, scores, timing = run.settings.get("recovery", {}), run.scores(), run.timing()
    healed = run.stage == "recovered"
    scored = (scores, run.scores_before_recovery() if healed else None)
    evaluations = sum(((one or {}).get("conditions") or {}).get("seconds", 0.0) for one in scored)
    healing = duration(recovery["seconds"]) if healed and "seconds" in recovery else ""
    return {
        "Merge": "" if run.stage == "planned" else _took(run.settings.get("merge", {})),
        **({"Heal with LoRA": healing} if healing or not run.settings.get("unhealed") else {}),
        "Evaluate": _took({"seconds": evaluations}) if scores else "",
        "Measure speed": _took(timing.get("conditions") or {}) if timing else "",
    }


def _took(record: dict[str, Any]) -> str:
    return duration(record["seconds"]) if record.get("seconds") else "done"


def follow(run: Run, state: State) -> None:
    """The stages, numbers, charts and log that change while the run's job runs."""
    show_stages(run)
    st.caption(plain(f"Windows chosen by {run.source}."))
    with st.container(horizontal=True, gap="large"):  # wraps where the page is narrow
        st.metric("Layers", f"{run.plan.layers_left} of {run.plan.layer_count}", width="content")
        rule = MERGE_RULES[run.plan.rule] if run.plan.windows else None
        st.metric("Rule", title_of(rule) if rule else "–", help=rule and as_sentence(rule.help), width="content")
        st.metric("Stage", stage_name(run), width="content")
        if state.memory_bytes:
            used = meters(state) if state.active else None
            st.metric("Memory of the job", gib(state.memory_bytes), used, "off", delta_arrow="off", width="content")
    recovery = run.settings.get("recovery_started") or run.settings.get("recovery") or {}
    events = [event for event in run.events() if event.get("stage") == "recover" and not event.get("begun")]
    if events:
        st.subheader("Loss while healing", anchor=False)
        healing_numbers(events, recovery)
        st.plotly_chart(loss_chart(events), key="run_loss")
    if "trained_parameters" in recovery:
        own = " with the original's own answers" if recovery.get("answers") == "original" else ""
        rank = "" if recovery.get("train") == "weights" else f"rank {recovery['rank']}, "
        st.caption(
            f"{recovery['steps']} steps of {recovery['batch'] * recovery['accumulate']} × {recovery['length']} tokens "
            f"from {recovery['texts']}{own}, {rank}learning rate {recovery['learning_rate']:g}, "
            f"{recovery['trained_parameters'] / 1e6:.1f} M trainable parameters, {recovery['seconds'] / 60:.1f} min"
        )
    if log := run.log_tail():
        with st.expander("Log"):
            st.code(log, language=None)


def meters(state: State) -> str:
    """CPU load, and GPU memory if a GPU is used."""
    gpu = f", GPU {gib(state.gpu_memory_bytes)}" if state.gpu_memory_bytes else ""
    return f"CPU {state.cpu_percent:.0f} % of a core{gpu}"


def healing_numbers(events: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Progress of the training: step, loss, learning rate, speed."""
    last = next((event for event in reversed(events) if "loss" in event), events[-1])
    held_out = next((event["held_out_loss"] for event in reversed(events) if "held_out_loss" in event), None)
    speed = training_speed(events, settings)
    with st.container(horizontal=True, gap="medium"):
        st.metric("Step", f"{last['step']:,} of {last['steps']:,}", width="content")
        losses = [event["loss"] for event in events if "loss" in event][-SMOOTHED:]
        st.metric(f"Loss, last {SMOOTHED} steps", f"{fmean(losses or [0]):.3f}", width="content")
        st.metric("Held-out loss", "–" if held_out is None else f"{held_out:.3f}", width="content")
        highest = max(event.get("learning_rate", 0) for event in events)
        st.metric("Highest learning rate", f"{highest:.3g}", width="content")
        shown_speed = "–" if speed is None else f"{speed:,.0f}"
        st.metric("Tokens per second", shown_speed, width="content")


def partial_checkpoint(run: Run, started: dict[str, Any]) -> str:
    """What an interrupted healing left behind, and which model can be used now."""
    model = f"The run's folder holds the complete {stage_name(run)} model, which you can use."
    if step := run.checkpoint_step():
        return (
            f"Healing stopped early. Its last checkpoint is at step {step:,} of {started['steps']:,}; “Resume healing” "
            f"continues from there. The checkpoint is not a usable model yet. {model}"
        )
    return f"Healing stopped before its first checkpoint and has to start over. {model}"
