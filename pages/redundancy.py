"""Redundancy page: how alike the layers are."""

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
from swm.charts import depth_lines, norm_line, similarity_heatmap
from swm.jobs import start
from swm.metrics import PARTS, Measure

NAMES = {
    "cka": "CKA",
    "cka-rbf": "CKA, Gaussian",
    "cka-biased": "CKA, biased",
    "cosine": "Cosine",
    "angular": "Angular",
}

experiment = require_experiment(start_page("Redundancy", "How alike the outputs of each pair of layers are."))
caption(experiment)
controls = st.columns([3, 2, 1, 2], gap="medium", vertical_alignment="bottom")
metric = controls[0].selectbox(
    "Metric",
    list(NAMES),
    format_func=NAMES.get,
    key="redundancy_metric",
    bind="query-params",
    persist_state="session",
    help="CKA (debiased, with a linear or Gaussian kernel, or biased as first published) ignores shift, rotation and "
    "scale of the states; cosine and angular compare them as they are.",
)
part = controls[1].segmented_control(
    "Of each layer",
    list(PARTS),
    default="output",
    required=True,
    key="redundancy_part",
    bind="query-params",
    persist_state="session",
    help="Its output, which it shares with its neighbours by construction, or what it adds: output minus input.",
)
skip = controls[2].number_input(
    "Skip tokens",
    0,
    64,
    0,
    key="redundancy_skip",
    bind="query-params",
    persist_state="session",
    help="First tokens of each text to leave out: a few of very large norm can make any two layers alike.",
)

with shown_errors():
    measure = Measure(metric, part, skip_tokens=skip)
    arguments = ["measure", experiment.name, "--metric", metric, "--part", part, "--skip", str(skip)]
    data = experiment.similarity(measure.name)
    if data is None:
        st.info("This has not been measured yet. It takes about one pass over the text.")
        if st.button("Measure", type="primary", disabled=experiment.read_only, key="redundancy_measure"):
            start(experiment, "measure", arguments)
        poll_while_active(experiment)
        job_status(experiment, experiment.state())
        command_line(*arguments)
        st.stop()
    runs = [run for run in experiment.runs() if not run.is_baseline]
    shown = controls[3].selectbox(
        "Outline the windows of",
        ["none", *(run.name for run in runs)],
        index=min(1, len(runs)),
        key="redundancy_run",
        help="Layers inside an outline become one layer in that run.",
    )
    windows = next((run.plan.windows for run in runs if run.name == shown), ())

matrix = data["matrix"]
left, right = st.columns([3, 2], gap="large")
with left:
    st.plotly_chart(similarity_heatmap(matrix, NAMES[metric], windows), key="redundancy_map")
with right:
    st.subheader("Along the depth", anchor=False)
    next_layer = [matrix[i][i + 1] for i in range(len(matrix) - 1)]
    st.plotly_chart(depth_lines(next_layer, data["block_influence"]), key="redundancy_depth")
    st.caption("Block influence: 1 − mean cosine between a layer's input and output. Low: the layer changes little.")
    st.plotly_chart(norm_line(data["norm"]), key="redundancy_norm")
st.markdown(
    "**How to read it.** A bright square along the diagonal is a run of layers whose outputs carry nearly the same "
    "information: candidates for one window. It does not prove that a layer can go: a small difference can matter, and "
    "a few tokens of very large norm (often a text's first) lift any two layers towards 1. The preview shows what "
    "merging really does to the output."
)
if data.get("warning"):
    st.warning(data["warning"], icon=":material/warning:")
st.caption(f"{data['tokens']:,} tokens, {data['conditions']['dtype']}, {data['conditions']['seconds']} s")
command_line(*arguments)
next_step("pages/preview.py", "Preview which windows merge")
