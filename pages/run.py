"""Run page: merge, recover and evaluate; what runs is read from the run's own files."""

import streamlit as st

from pages.shared.frame import (
    caption,
    command_line,
    job_status,
    next_step,
    number_from_address,
    poll_while_active,
    require_experiment,
    shown_errors,
    start_page,
)
from pages.shared.live import layers_picture
from swm.charts import loss_chart
from swm.compare import STAGES
from swm.experiments import Experiment, Run, check_name
from swm.jobs import cancel, start
from swm.plan import DEFAULT_RULE, RULES, MergePlan, parse_windows
from swm.presets import PRESET_HELP, PRESETS, recovery_arguments

NEW = "new run"
TUNED = "As tuned on the preview page: a window grows while the similarity is at least this."
RULE = "How a window becomes one layer; rdsc is the formula printed in the paper."


def new_run(experiment: Experiment, count: int) -> None:
    """The form for a new run, and the job it starts."""
    tuned = number_from_address("merge_at", 0.9, 0.01, 1.0)
    wanted = st.query_params.get("merge_by") if st.query_params.get("merge_by") in RULES else DEFAULT_RULE
    rules, presets = list(RULES), list(PRESETS)
    with st.form("run_form", border=True):
        left, right = st.columns(2, gap="large")
        name = left.text_input("Name", f"run-{count + 1}", max_chars=64, key="run_name", help="For you; a-z, 0-9, -")
        threshold = left.number_input(
            "Threshold", 0.01, 1.0, tuned, 0.001, format="%.3f", key="run_threshold", help=TUNED
        )
        windows = left.text_input(
            "or windows by hand",
            st.query_params.get("windows", "")[:400],
            key="run_windows",
            placeholder="27-28,25-26",
            help="First and last layer, both included. Overrules the threshold.",
        )
        rule = left.selectbox("Merge rule", rules, index=rules.index(wanted), key="run_rule", help=RULE)
        heal = right.toggle("Heal with LoRA", True, key="run_recover", help="Short training of small added matrices.")
        preset = right.selectbox(
            "Preset",
            presets,
            format_func=preset_label,
            key="run_preset",
            help="Settings of LoRA.",
        )
        steps = right.number_input(
            "Steps of preset quick",
            1,
            100_000,
            PRESETS["quick"].steps,
            key="run_steps",
            help=f"Of {PRESETS['quick'].batch} × {PRESETS['quick'].length} tokens each.",
        )
        limit = right.number_input(
            "Documents of each task", 1, 20_000, 100, key="run_limit", help="More: smaller error bars, longer waits."
        )
        submitted = st.form_submit_button("Merge, heal and evaluate", type="primary", disabled=experiment.read_only)
    plan = ["--windows", windows] if windows.strip() else ["--threshold", f"{threshold:g}"]
    quick = ["--steps", str(steps)] if preset == "quick" else []
    healing = ["--preset", preset, *quick] if heal else ["--no-recovery"]
    if submitted:
        check_name(name)
        run = planned(experiment, name, windows, threshold, rule)
        if run is None:
            st.warning(f"Threshold {threshold:g} has not been searched with rule {rule}. Search it first.")
            next_step("pages/preview.py", "Search on the preview page")
        else:
            start(run, "run", ["run", experiment.name, name, *healing, "--limit", str(limit)])
            st.session_state["run_next"] = name
            st.rerun()
    command_line("run", experiment.name, name, *plan, "--rule", rule, *healing, "--limit", str(limit))


def preset_label(preset: str) -> str:
    return f"{preset}: {PRESET_HELP[preset]}"


def planned(experiment: Experiment, name: str, windows: str, threshold: float, rule: str) -> Run | None:
    """A new run with its plan; None if the threshold's plan is not known yet."""
    if windows.strip():
        return experiment.create_run(name, MergePlan(experiment.layer_count, parse_windows(windows), rule))
    path = experiment.path(rule)
    step = path.plan_at(threshold) if path else None
    return step and experiment.create_run(name, step.plan, threshold, step.similarity)


def controls(run: Run) -> None:
    """What can be done with a run now."""
    name = (run.experiment.name, run.name)
    windows = ",".join(map(str, run.plan.windows))
    unfinished = run.settings.get("recovery_started")
    heal = recovery_arguments(unfinished) if unfinished else ["--preset", "quick"]
    actions = {
        "Merge": ["merge", *name, "--windows", windows, "--rule", run.plan.rule],
        "Go on healing" if unfinished else "Heal with LoRA": ["recover", *name, *heal],
        "Evaluate": ["evaluate", *name],
        "Time": ["time", *name],
        "All that is left": ["run", *name, *heal],
    }
    for column, (label, arguments) in zip(st.columns(len(actions)), actions.items(), strict=True):
        allowed = run.stage == "planned" if label == "Merge" else run.stage != "planned" or label == "All that is left"
        if column.button(label, key=f"run_do_{label}", disabled=not allowed, width="stretch"):
            start(run, arguments[0], arguments)
            st.rerun()
    command_line(*actions["Merge" if run.stage == "planned" else "Evaluate"])


def progress(run: Run) -> None:
    """The run's numbers, its job, its loss and its log."""
    state, settings = run.state(), run.settings
    columns = st.columns(4)
    columns[0].metric("Layers", f"{run.plan.layers_left} of {run.plan.layer_count}")
    columns[1].metric("Rule", run.plan.rule, help=RULES[run.plan.rule])
    columns[2].metric("Stage", STAGES[run.stage])
    columns[3].metric("Memory of the job", f"{state.memory_bytes / 2**20:,.0f} MiB" if state.memory_bytes else "–")
    layers_picture(run.plan, run.experiment.model_facts, key="run_layers")
    poll_while_active(run)
    job_status(run, state)
    if state.active and st.button("Cancel", key="run_cancel", icon=":material/cancel:"):
        cancel(run)
        st.toast("It stops after the step it is in; what is finished is kept.")
    if not state.active and not run.read_only:
        controls(run)
    events = [event for event in run.events() if event.get("stage") == "recover"]
    if events:
        st.subheader("Loss while healing", anchor=False)
        st.plotly_chart(loss_chart(events), key="run_loss")
    if recovery := settings.get("recovery"):
        st.caption(
            f"{recovery['steps']} steps of {recovery['batch'] * recovery['accumulate']} × {recovery['length']} tokens "
            f"of {recovery['texts']}, rank {recovery['rank']}, learning rate {recovery['learning_rate']:g}, "
            f"{recovery['trained_parameters'] / 1e6:.1f} M trained parameters, {recovery['seconds'] / 60:.1f} min"
        )
    if log := run.log_tail():
        with st.expander("Log"):
            st.code(log, language=None)


experiment = require_experiment(start_page("Run", "Merge the windows, heal the smaller model with LoRA, evaluate it."))
caption(experiment)
with shown_errors():
    runs = {run.name: run for run in experiment.runs() if not run.is_baseline}
    if st.session_state.get("run_next") in runs:
        st.session_state["run"] = st.session_state.pop("run_next")
    chosen = st.selectbox("Run", [NEW, *runs], index=min(1, len(runs)), key="run", bind="query-params")
    if chosen in runs:
        progress(runs[chosen])
        next_step("pages/compare.py", "Compare with the original")
    else:
        new_run(experiment, len(runs))
