"""Preview page: choose a threshold, see which layers would merge."""

import streamlit as st

from pages.shared.frame import (
    caption,
    command_line,
    job_status,
    next_step,
    poll_while_active,
    require_experiment,
    shown_errors,
    start_page,
)
from pages.shared.tables import trace_table
from swm.charts import layer_strip, similarity_heatmap, staircase, trace_chart
from swm.jobs import start
from swm.plan import RULES

RULE_NAMES = {
    "rdsc": "printed formula",
    "replace": "released code",
    "mean": "average",
    "keep_first": "keep the first layer",
    "keep_last": "keep the last layer",
}

ANY = "any"

experiment = require_experiment(
    start_page("Preview", "Which neighbouring layers become one, for the similarity you ask for.")
)
caption(experiment)
controls = st.columns([4, 2, 1.3], gap="large", vertical_alignment="bottom")
rule = controls[1].selectbox(
    "Merge rule",
    list(RULES),
    format_func=RULE_NAMES.get,
    key="rule",
    bind="query-params",
    persist_state="session",
    help="How a window becomes one layer.",
)
threshold = controls[0].slider(
    "Merge while similarity is at least",
    0.5,
    1.0,
    0.9,
    0.001,
    format="%.3f",
    key="threshold",
    bind="query-params",
    persist_state="session",
    on_change=lambda: st.session_state.update(preview_depth=ANY),
    help="Cosine between the final hidden states of the merged and the original model, averaged over the texts.",
)

with shown_errors():
    path = experiment.path(rule)
    steps = path.intervals() if path else []
    depths = sorted({each.plan.layers_left for each in steps}, reverse=True)
    depth = controls[2].selectbox(
        "or layers",
        [ANY, *depths],
        key="preview_depth",
        help="Instead of the threshold: of the plans that leave so many layers the one of lowest perplexity.",
    )
    if path is None or path.covered() < 0.999:
        known = f"{path.covered():.0%} of the thresholds from {path.low:g} up" if path else "No threshold"
        if experiment.state().active:
            poll_while_active(experiment)
        else:
            st.info(
                f"{known} is computed for this rule. The search finds every plan at once, the one at this threshold "
                "first; for 30 layers and 10 × 128 tokens expect some minutes on a processor."
            )
    step = path.plan_with_layers(depth) if path and depth in depths else path and path.plan_at(threshold)
    if step is None and path and path.covered() > 0.999:
        st.info(f"Plans are computed for thresholds from {path.low:g} up. Search for those below, or move the slider.")
    if step is None or path is None or path.covered() < 0.999:
        low = min(path.low if path else 0.5, threshold)
        arguments = ["search", experiment.name, "--rule", rule, "--from", f"{low:g}", "--focus", f"{threshold:g}"]
        idle = not experiment.state().active
        if idle and st.button("Search", type="primary", disabled=experiment.read_only, key="preview_search"):
            start(experiment, "search", arguments)
            st.rerun()
        job_status(experiment, experiment.state())
        command_line(*arguments)
    if step is None:
        st.stop()

threshold = step.threshold
plan, facts = step.plan, experiment.model_facts
saved = (plan.layer_count - plan.layers_left) * facts["parameters_per_layer"]
columns = st.columns(6)
columns[0].metric("Layers", f"{plan.layers_left} of {plan.layer_count}")
columns[1].metric("Parameters", f"{(facts['parameters'] - saved) / 1e6:,.1f} M")
columns[2].metric("Smaller by", f"{saved / facts['parameters']:.1%}")
columns[3].metric("Windows", len(plan.windows))
columns[4].metric("Similarity", f"{step.similarity:.4f}", help="Of the model with all windows merged.")
original = path.perplexities.get(())
columns[5].metric(
    "Perplexity",
    "–" if step.perplexity is None else f"{step.perplexity:,.0f}",
    None if step.perplexity is None or original is None else f"× {step.perplexity / original:.2f}",
    delta_color="off",
    delta_arrow="off",
    help="On the calibration text, before healing, and how many times the original's. Lower is better.",
)

st.plotly_chart(layer_strip(plan), key="preview_strip", config={"displayModeBar": False})
interval = f"The same plan holds for thresholds above {step.low:.4f} up to {step.high:.4f}."
if path.scoring != "exact":
    interval += f" Similarities in {path.scoring}, off by up to {path.difference:.1g} where they were checked."
st.caption(interval)
if not plan.windows:
    st.info("No neighbours are this alike. Lower the threshold to merge some.")

left, right = st.columns(2, gap="large")
with left:
    st.subheader("Layers left against the threshold", anchor=False)
    st.plotly_chart(staircase(steps, threshold), key="preview_stairs")
    st.caption("Not monotone: a lower threshold can lead the window another way.")
with right:
    st.subheader("Every window tried", anchor=False)
    st.plotly_chart(trace_chart(step), key="preview_trace")
    st.caption("A window grows downward while it stays on or above the line.")

with st.expander("The windows tried, as a table"):
    st.dataframe(
        trace_table(step), hide_index=True, column_config={"similarity": st.column_config.NumberColumn(format="%.4f")}
    )
metrics = experiment.metrics_measured()
if metrics:
    with st.expander("The windows on the heat map"):
        matrix = experiment.similarity(metrics[0])["matrix"]
        st.plotly_chart(similarity_heatmap(matrix, metrics[0], plan.windows), key="preview_map")
st.caption(
    "The similarity of the last hidden states is a weak guide to quality: a plan with a good one can still have a poor "
    "perplexity. Evaluate a run before you trust it."
)
command_line("plan", experiment.name, "--threshold", f"{threshold:g}", "--rule", rule, "--json")
next_step("pages/run.py", "Merge these layers", run="new run", merge_at=f"{threshold:g}", merge_by=rule)
