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

experiment = require_experiment(
    start_page("Preview", "Which neighbouring layers become one, for the similarity you ask for.")
)
caption(experiment)
controls = st.columns([3, 1], gap="large", vertical_alignment="bottom")
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
    help="Cosine between the final hidden states of the merged and the original model, averaged over the texts.",
)

with shown_errors():
    path = experiment.path(rule)
    covered = path.covered() if path else 0.0
    if covered < 0.999 or path.low > threshold:
        if experiment.state().active:
            poll_while_active(experiment)
        else:
            low = min(0.5, threshold)
            st.info(
                f"{covered:.0%} of the thresholds are computed for this rule. The search finds every plan at once, the "
                "one at this threshold first; for 30 layers and 10 × 128 tokens expect some minutes on a processor."
            )
            arguments = ["search", experiment.name, "--rule", rule, "--from", f"{low:g}", "--focus", f"{threshold:g}"]
            if st.button("Search", type="primary", disabled=experiment.read_only, key="preview_search"):
                start(experiment, "search", arguments)
                st.rerun()
            command_line(*arguments)
        job_status(experiment, experiment.state())
    step = path.plan_at(threshold) if path and path.low <= threshold else None
    if step is None:
        st.stop()

plan, facts = step.plan, experiment.model_facts
saved = (plan.layer_count - plan.layers_left) * facts["parameters_per_layer"]
columns = st.columns(5)
columns[0].metric("Layers", f"{plan.layers_left} of {plan.layer_count}")
columns[1].metric("Parameters", f"{(facts['parameters'] - saved) / 1e6:,.1f} M")
columns[2].metric("Smaller by", f"{saved / facts['parameters']:.1%}")
columns[3].metric("Windows", len(plan.windows))
columns[4].metric("Similarity", f"{step.similarity:.4f}", help="Of the model with all windows merged.")

st.plotly_chart(layer_strip(plan), key="preview_strip", config={"displayModeBar": False})
st.caption(f"The same plan holds for thresholds above {step.low:.4f} up to {step.high:.4f}.")
if not plan.windows:
    st.info("No neighbours are this alike. Lower the threshold to merge some.")

left, right = st.columns(2, gap="large")
with left:
    st.subheader("Layers left against the threshold", anchor=False)
    st.plotly_chart(staircase(path.intervals(), threshold), key="preview_stairs")
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
