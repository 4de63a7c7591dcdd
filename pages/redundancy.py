"""Redundancy page: how similar the layers are."""

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
from swm.reporting.glossary import TERMS, TITLES
from swm.similarity.blocks import pair_sentence, similar_patches
from swm.similarity.measure import PARTS, Measure
from swm.workspace.experiments import list_experiments

OWN, NONE, CURRENT = "calibration text", "none", "the preview"

experiment = require_experiment(start_page("Redundancy", "See how similar each pair of layers is."))
caption(experiment)
controls = st.columns([1.7, 2.7, 1.6, 2.0], gap="medium", vertical_alignment="bottom")
metric = controls[0].selectbox(
    "Metric",
    list(METRICS),
    format_func=lambda name: METRICS[name].title,
    key="redundancy_metric",
    bind="query-params",
    persist_state="session",
    help="CKA (debiased with a linear or Gaussian kernel, or biased as first published) ignores shift, rotation and "
    "scale of the hidden states. Cosine and angular similarity do not.",
)
part = controls[1].segmented_control(
    "Compare layer outputs or updates",
    list(PARTS),
    default="output",
    required=True,
    key="redundancy_part",
    bind="query-params",
    persist_state="session",
    help="Outputs of neighbouring layers are similar by construction (residual stream). An update is what a layer "
    "adds: output minus input.",
)
skip = controls[2].number_input(
    "Skip tokens",
    0,
    64,
    0,
    key="redundancy_skip",
    bind="query-params",
    persist_state="session",
    help="Leaves out this many tokens at the start of each text. A few with a very large norm can make any two layers "
    "look similar.",
)
text = controls[3].selectbox(
    "Text",
    [OWN, *(f"task:{task}" for task in TASKS)],
    key="redundancy_text",
    bind="query-params",
    persist_state="session",
    help="The experiment's calibration text, or the prompts of a zero-shot task.",
)

with shown_errors():
    measure = Measure(metric, part, skip_tokens=skip, texts="" if text == OWN else text)
    arguments = ["measure", experiment.name, "--metric", metric, "--part", part, "--skip", str(skip)]
    arguments += ["--texts", measure.texts] if measure.texts else []
    data = experiment.similarity(measure.name)
    if data is None:
        st.info("This has not been measured yet. It takes about one forward pass over the text.")
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
        help="The layers inside an outline merge into one, in the plan on the Preview page or in a run.",
    )
    level = marks[1].number_input(
        "Mark blocks at or above",
        0.0,
        1.0,
        0.99,
        0.005,
        format="%.3f",
        key="redundancy_level",
        help="Dotted outlines: blocks of neighbouring layers in which every pair is at least this similar.",
    )
    other = marks[2].selectbox(
        "Compare with another map",
        [NONE, *maps],
        key="redundancy_other",
        help="Shows a second map, of any experiment with the same number of layers, and the difference.",
    )
    windows = next((run.plan.windows for run in runs if run.name == shown), ())
    if shown == CURRENT:
        windows = current_windows(experiment)
    second = maps[other]() if other in maps else None

blocks = similar_patches(matrix, level)
pair_key = f"redundancy_pair_{experiment.name}"
if clicked := st.session_state.get("redundancy_map", {}).get("selection", {}).get("points"):
    st.session_state[pair_key] = (int(clicked[0]["x"]), int(clicked[0]["y"]))
pair = st.session_state.get(pair_key)
figure = similarity_heatmap(matrix, METRICS[metric].title, windows, blocks, pair)
maps_beside = st.columns(3, gap="medium") if second else st.columns([3, 2], gap="large")
with maps_beside[0]:
    st.plotly_chart(figure, key="redundancy_map", on_select="rerun", selection_mode="points")
    if pair:
        st.markdown(f"**{pair_sentence(matrix, min(pair), max(pair), METRICS[metric].title)}**")
    else:
        st.caption("Click a cell to see the values of that pair of layers.")
    if blocks:
        st.caption(f"Blocks with similarity >= {level:g}: {', '.join(map(str, blocks))}")
if second:
    with maps_beside[1]:
        st.plotly_chart(similarity_heatmap(second["matrix"], other), key="redundancy_second")
    with maps_beside[2]:
        st.plotly_chart(
            difference_heatmap(matrix, second["matrix"], "this minus the other"), key="redundancy_difference"
        )
beside = st.columns(2, gap="large") if second else [maps_beside[1]] * 2
with beside[0]:
    st.subheader("Layer by layer", anchor=False)
    next_layer = [matrix[i][i + 1] for i in range(len(matrix) - 1)]
    st.plotly_chart(depth_lines(next_layer, data["block_influence"]), key="redundancy_depth")
    st.caption(f"**{TITLES['block_influence']}**: {TERMS['block_influence']}")
with beside[1]:
    st.plotly_chart(norm_line(data["norm"]), key="redundancy_norm")
st.markdown(
    f"**{TITLES['similarity']}**: {TERMS['similarity']}\n\n"
    "**How to read the map.** A bright square along the diagonal is a block of layers whose outputs carry nearly the "
    "same information: candidates for one window. It does not prove that a layer can be removed. A small difference "
    "can matter, and a few tokens with a very large norm (often the first of a text) push the similarity of any two "
    "layers towards 1. The Preview page shows what merging does to the model's output."
)
if data.get("warning"):
    st.warning(data["warning"], icon=":material/warning:")
st.caption(
    f"Measured on {data['tokens']:,} tokens in {data['conditions']['dtype']}, in {data['conditions']['seconds']} s"
)
command_line(*arguments)
next_step("pages/preview.py", "See which windows merge")
