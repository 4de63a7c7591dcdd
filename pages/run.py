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
from pages.shared.tables import STAGES
from swm.charts import layer_strip, loss_chart
from swm.experiments import check_name
from swm.jobs import cancel, start
from swm.plan import DEFAULT_RULE, RULES, MergePlan, parse_windows

TUNED = "As tuned on the preview page: a window grows while the similarity is at least this."
RULE = "How a window becomes one layer; rdsc is the formula printed in the paper."

experiment = require_experiment(start_page("Run", "Merge the windows, heal the smaller model with LoRA, evaluate it."))
caption(experiment)

with shown_errors():
    runs = [run for run in experiment.runs() if not run.is_baseline]
    chosen = st.selectbox(
        "Run", ["new run", *(run.name for run in runs)], index=min(1, len(runs)), key="run", bind="query-params"
    )
    run = next((each for each in runs if each.name == chosen), None)

if run is None:
    tuned = number_from_address("merge_at", 0.9, 0.01, 1.0)
    wanted = st.query_params.get("merge_by") if st.query_params.get("merge_by") in RULES else DEFAULT_RULE
    with st.form("run_form", border=True):
        left, right = st.columns(2, gap="large")
        name = left.text_input("Name", f"run-{len(runs) + 1}", max_chars=64, key="run_name")
        threshold = left.number_input(
            "Threshold", 0.01, 1.0, tuned, 0.001, format="%.3f", key="run_threshold", help=TUNED
        )
        windows = left.text_input(
            "or windows by hand",
            "",
            key="run_windows",
            placeholder="27-28,25-26",
            help="Both ends included. Overrules the threshold.",
        )
        rules = list(RULES)
        rule = left.selectbox("Merge rule", rules, index=rules.index(wanted), key="run_rule", help=RULE)
        recover = right.toggle(
            "Heal with LoRA", True, key="run_recover", help="Short training of small added matrices."
        )
        preset = right.selectbox(
            "Preset",
            ("quick", "paper"),
            key="run_preset",
            help="quick: minutes for a small model. paper: hours on a GPU, from the hub.",
        )
        steps = right.number_input(
            "Steps", 1, 100_000, 80, key="run_steps", help="Of the quick preset; 8 × 256 tokens each."
        )
        limit = right.number_input(
            "Documents of each task",
            1,
            20_000,
            100,
            key="run_limit",
            help="More: smaller error bars, longer evaluation.",
        )
        submitted = st.form_submit_button("Merge, heal and evaluate", type="primary", disabled=experiment.read_only)
    plan = ["--windows", windows] if windows.strip() else ["--threshold", f"{threshold:g}"]
    healing = (
        ["--preset", preset, *(["--steps", str(steps)] if preset == "quick" else [])] if recover else ["--no-recovery"]
    )
    arguments = ["run", experiment.name, name, *plan, "--rule", rule, *healing, "--limit", str(limit)]
    if submitted:
        with shown_errors():
            check_name(name)
            if windows.strip():
                MergePlan(experiment.layer_count, parse_windows(windows), rule)
            start(experiment, "run", arguments)
        st.toast(f"Started {name}")
    with shown_errors():
        poll_while_active(experiment)
        job_status(experiment, experiment.state())
    command_line(*arguments)
    st.stop()

with shown_errors():
    state, plan, settings = run.state(), run.plan, run.settings
    columns = st.columns(4)
    columns[0].metric("Layers", f"{plan.layers_left} of {plan.layer_count}")
    columns[1].metric("Rule", plan.rule)
    columns[2].metric("Stage", STAGES[run.stage])
    columns[3].metric("Memory of the job", f"{state.memory_bytes / 2**20:,.0f} MiB" if state.memory_bytes else "–")
    st.plotly_chart(layer_strip(plan), key="run_strip", config={"displayModeBar": False})
    poll_while_active(run)
    job_status(run, state)
    if state.active and st.button("Cancel", key="run_cancel", icon=":material/cancel:"):
        cancel(run)
        st.toast("It stops after the step it is in; what is finished is kept.")
    actions = {
        "Merge": [
            "merge",
            experiment.name,
            run.name,
            "--windows",
            ",".join(map(str, plan.windows)),
            "--rule",
            plan.rule,
        ],
        "Heal with LoRA": ["recover", experiment.name, run.name, "--preset", "quick"],
        "Evaluate": ["evaluate", experiment.name, run.name],
        "Time": ["time", experiment.name, run.name],
    }
    if not state.active and not experiment.read_only:
        for column, (label, arguments) in zip(st.columns(4), actions.items(), strict=True):
            allowed = label == "Merge" or run.stage != "planned"
            if column.button(label, key=f"run_do_{label}", disabled=not allowed, width="stretch"):
                start(run, arguments[0], arguments)
                st.rerun()

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
command_line(*actions["Merge" if run.stage == "planned" else "Heal with LoRA"])
next_step("pages/compare.py", "Compare with the original")
