"""Redundancy page: how alike the layers are."""

import streamlit as st

from pages.shared.frame import (
    caption,
    command_line,
    job_panel,
    next_step,
    require_experiment,
    shown_errors,
    start_page,
)
from pages.shared.live import current_windows
from pages.shared.tables import similarity_maps
from swm.evaluation.task_names import TASKS
from swm.jobs.child import start
from swm.registry import METRICS
from swm.reporting.charts import depth_lines, difference_heatmap, norm_line, similarity_heatmap
from swm.similarity.blocks import pair_sentence, similar_patches
from swm.similarity.measure import PARTS, Measure
from swm.workspace.experiments import list_experiments

OWN, NONE, CURRENT = "calibration text", "none", "the preview"

experiment = require_experiment(start_page("Redundancy", "How alike the outputs of each pair of layers are."))
caption(experiment)
controls = st.columns([2.2, 2.1, 1.6, 2.1], gap="medium", vertical_alignment="bottom")
metric = controls[0].selectbox(
    "Metric",
    list(METRICS),
    format_func=lambda name: METRICS[name].title,
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
text = controls[3].selectbox(
    "Text",
    [OWN, *(f"task:{task}" for task in TASKS)],
    key="redundancy_text",
    bind="query-params",
    persist_state="session",
    help="The experiment's own text, or the prompts of a zero-shot task.",
)

with shown_errors():
    measure = Measure(metric, part, skip_tokens=skip, texts="" if text == OWN else text)
    arguments = ["measure", experiment.name, "--metric", metric, "--part", part, "--skip", str(skip)]
    arguments += ["--texts", measure.texts] if measure.texts else []
    data = experiment.similarity(measure.name)
    if data is None:
        st.info("This has not been measured yet. It takes about one pass over the text.")
        if st.button("Measure", type="primary", disabled=experiment.read_only, key="redundancy_measure"):
            start(experiment, "measure", arguments)
            st.rerun()
        job_panel(experiment)
        command_line(*arguments)
        st.stop()
    matrix = data["matrix"]
    runs = [run for run in experiment.runs() if not run.is_baseline]
    maps = similarity_maps(list_experiments()[0], len(matrix))
    marks = st.columns([2.2, 2.1, 1.6 + 2.1], gap="medium", vertical_alignment="bottom")
    shown = marks[0].selectbox(
        "Outline the windows of",
        [CURRENT, *(run.name for run in runs), NONE],
        key="redundancy_run",
        help="Layers inside an outline become one layer: in the plan tuned on the preview page, or in a run.",
    )
    level = marks[1].number_input(
        "Mark patches from",
        0.0,
        1.0,
        0.99,
        0.005,
        format="%.3f",
        key="redundancy_level",
        help="Dotted: runs of neighbours of which every pair is at least this similar.",
    )
    other = marks[2].selectbox(
        "Compare with",
        [NONE, *maps],
        key="redundancy_other",
        help="A second map beside this one, and the difference; of any experiment with as many layers.",
    )
    windows = next((run.plan.windows for run in runs if run.name == shown), ())
    if shown == CURRENT:
        windows = current_windows(experiment)
    second = maps[other]() if other in maps else None

patches = similar_patches(matrix, level)
pair_key = f"redundancy_pair_{experiment.name}"
if chosen := st.session_state.get("redundancy_map", {}).get("selection", {}).get("points"):
    st.session_state[pair_key] = (int(chosen[0]["x"]), int(chosen[0]["y"]))
pair = st.session_state.get(pair_key)
figure = similarity_heatmap(matrix, METRICS[metric].title, windows, patches, pair)
maps_beside = st.columns(3, gap="medium") if second else st.columns([3, 2], gap="large")
with maps_beside[0]:
    st.plotly_chart(figure, key="redundancy_map", on_select="rerun", selection_mode="points")
    if pair:
        st.markdown(f"**{pair_sentence(matrix, min(pair), max(pair), METRICS[metric].title)}**")
    else:
        st.caption("Click a cell to read a pair.")
    if patches:
        st.caption(f"Patches of {level:g} and more: {', '.join(map(str, patches))}")
if second:
    with maps_beside[1]:
        st.plotly_chart(similarity_heatmap(second["matrix"], other), key="redundancy_second")
    with maps_beside[2]:
        st.plotly_chart(
            difference_heatmap(matrix, second["matrix"], "this minus the other"), key="redundancy_difference"
        )
beside = st.columns(2, gap="large") if second else [maps_beside[1]] * 2
with beside[0]:
    st.subheader("Along the depth", anchor=False)
    next_layer = [matrix[i][i + 1] for i in range(len(matrix) - 1)]
    st.plotly_chart(depth_lines(next_layer, data["block_influence"]), key="redundancy_depth")
    st.caption("Block influence: 1 − mean cosine between a layer's input and output. Low: the layer changes little.")
with beside[1]:
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
