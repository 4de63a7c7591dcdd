"""Redundancy page: how similar the layers are."""

from dataclasses import replace
from functools import partial
from typing import Any

import streamlit as st

from pages.shared.choices import named_choice
from pages.shared.fields import number
from pages.shared.frame import (
    caption,
    command_line,
    job_panel,
    require_experiment,
    shown_errors,
    start_button,
    start_page,
)
from pages.shared.live import current_windows
from pages.shared.navigation import next_step
from pages.shared.tables import similarity_maps
from swm.evaluation.task_names import TASKS
from swm.plan import Window
from swm.registry import METRICS
from swm.reporting.charts import influence_lines, neighbour_line, norm_line
from swm.reporting.glossary import TERMS, TITLES
from swm.reporting.heatmaps import CONTRASTS, beside, difference_heatmap, similarity_heatmap
from swm.settings import SKIPPED_TOKENS
from swm.similarity.blocks import (
    band_sentence,
    first_tokens_sentence,
    long_states_sentence,
    pair_sentence,
    similar_patches,
)
from swm.similarity.measure import PARTS, Measure
from swm.workspace.experiments import Experiment, list_experiments

OWN, NONE, CURRENT, WHOLE = "calibration text", "none", "the preview", "the same with the first tokens"


def pair_in_address(layers: int) -> tuple[int, int] | None:
    """The two layers named in the address, as in pair=12-20; None if there are none or they do not exist."""
    numbers = st.query_params.get("pair", "").split("-")
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) < layers for number in numbers):
        return None
    return int(numbers[0]), int(numbers[1])


def measure_arguments(experiment: Experiment, measure: Measure) -> list[str]:
    """The command that measures a map."""
    arguments = ["measure", experiment.name, "--metric", measure.metric, "--part", measure.part]
    arguments += ["--skip", str(measure.skip_tokens)]
    return [*arguments, "--texts", measure.texts] if measure.texts else arguments


def measure_button(experiment: Experiment, measure: Measure, key: str, was_active: bool) -> None:
    """The button that measures a map; in its place, what runs already."""
    if not was_active:
        start_button("Measure", experiment, "measure", measure_arguments(experiment, measure), key)
    changed = partial(experiment.changed, f"similarity/{measure.name}.json")
    job_panel(experiment, version=changed, was_active=was_active)


def show_maps(first: dict[str, Any], second: dict[str, Any], name: str, contrast: str, titles: tuple[str, str]) -> None:
    """Two maps and their difference, side by side."""
    left, middle, right = st.columns(3, gap="medium")
    for column, data, title, key in ((left, first, titles[0], "first"), (middle, second, titles[1], "second")):
        with column:
            own = METRICS[data["metric"]].title if data.get("metric") in METRICS else name
            figure = similarity_heatmap(data["matrix"], own, contrast=contrast, title=title)
            st.plotly_chart(beside(figure), key=f"redundancy_{key}")
    with right:
        figure = difference_heatmap(first["matrix"], second["matrix"], "first minus second")
        st.plotly_chart(beside(figure), key="redundancy_difference")


experiment = require_experiment(start_page("Redundancy", "See how similar each pair of layers is."))
caption(experiment)
most_skipped = max(0, min(64, experiment.settings.length - 4))
controls = st.columns([1.7, 2.7, 1.6, 2.0], gap="medium", vertical_alignment="bottom")
metric = named_choice(
    controls[0].selectbox,
    "Metric",
    {name: METRICS[name].title for name in METRICS},
    "redundancy_metric",
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
skip = number(
    "Skip tokens",
    0,
    most_skipped,
    min(SKIPPED_TOKENS, most_skipped),
    place=controls[2],
    key="redundancy_skip",
    bind="query-params",
    persist_state="session",
    help="Leaves out this many tokens at the start of each text. The first ones have a very large norm in most models, "
    "and make any two layers look similar.",
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
    arguments = measure_arguments(experiment, measure)
    was_active = experiment.state().active  # before the map is read: the job could end in between
    data = experiment.similarity(measure.name)
    if data is None:
        if not was_active:
            st.info("This has not been measured yet. It takes about three forward passes over the text.")
        measure_button(experiment, measure, "redundancy_measure", was_active)
        command_line(*arguments)
        st.stop()
    matrix = data["matrix"]
    runs = [run for run in experiment.runs() if not run.is_baseline]
    maps = similarity_maps(list_experiments()[0], len(matrix))
    marks = st.columns([2.2, 2.0, 2.4, 2.0], gap="medium", vertical_alignment="bottom")
    outlines = [CURRENT, *(run.name for run in runs), NONE]
    shown = named_choice(
        marks[0].selectbox,
        "Outline the windows of",
        {name: name for name in outlines},
        "redundancy_run",
        help="The layers inside an outline merge into one, in the plan on the Preview page or in a run.",
    )
    level = number(
        "Mark blocks from",
        0.0,
        1.0,
        0.99,
        place=marks[1],
        step=0.005,
        format="%.3f",
        key="redundancy_level",
        bind="query-params",
        help="Dotted outlines: blocks of neighbouring layers in which every pair is at least this similar.",
    )
    others = [NONE, *([WHOLE] if skip else []), *maps]
    other = named_choice(
        marks[2].selectbox,
        "Compare with",
        {name: name for name in others},
        "redundancy_other",
        help="Shows a second map, of any experiment with the same number of layers, and the difference.",
    )
    contrast = named_choice(
        marks[3].selectbox,
        "Colours",
        {name: name for name in CONTRASTS},
        "redundancy_contrast",
        help="From 0 to 1; stretched from the lowest to the highest similarity of two layers; or logarithmic in the "
        "difference from 1, which tells 0.9, 0.99 and 0.999 apart.",
    )
    windows = next((run.plan.windows for run in runs if run.name == shown), ())
    if shown == CURRENT:
        windows = current_windows(experiment)
    second, whole = None, replace(measure, skip_tokens=0)
    if other == WHOLE:
        second = experiment.similarity(whole.name)
    elif other in maps:
        second = maps[other]()

name = METRICS[metric].title
st.markdown(f"**{band_sentence(matrix, name)}**")
medians, largest = (data.get(name, []) for name in ("norm_median", "norm_max"))
if largest and skip and metric.startswith("cka") and (sentence := long_states_sentence(medians, largest)):
    st.markdown(sentence)
if other == WHOLE and second is None:
    st.info("The map of all tokens has not been measured yet.")
    measure_button(experiment, whole, "redundancy_whole", was_active)
if second:
    show_maps(data, second, name, contrast, (f"without the first {skip} tokens" if other == WHOLE else "this", other))
if second and other == WHOLE:
    st.markdown(first_tokens_sentence(matrix, second["matrix"], skip, name))
blocks: tuple[Window, ...] = similar_patches(matrix, level)
if clicked := st.session_state.get("redundancy_map", {}).get("selection", {}).get("points"):
    st.query_params["pair"] = f"{int(clicked[0]['x'])}-{int(clicked[0]['y'])}"
pair = pair_in_address(len(matrix))
with st.container(key="wrap_charts_redundancy"):
    left, right = st.columns([5, 4], gap="medium")
with left:
    title = f"{name} of layer {part}s"
    figure = similarity_heatmap(matrix, name, windows, blocks, pair, contrast, title)
    st.plotly_chart(figure, key="redundancy_map", on_select="rerun", selection_mode="points")
    if pair:
        st.markdown(f"**{pair_sentence(matrix, min(pair), max(pair), name)}**")
    else:
        st.caption("Click a cell to see the values of that pair of layers.")
    outlined = [f"Solid outlines: windows of {shown}."] if windows else []
    outlined += [f"Dotted: layers {', '.join(map(str, blocks))}, every pair at least {level:g}."] if blocks else []
    if outlined:
        st.caption(" ".join(outlined))
    st.markdown(
        f"**{TITLES['similarity']}**: {TERMS['similarity']}\n\n"
        "**How to read the map.** A bright square along the diagonal is a block of layers whose outputs carry nearly "
        "the same information: candidates for one window. It does not prove that a layer can be removed, since a small "
        "difference can matter. The Preview page shows what merging does to the model's output."
    )
with right:
    next_layer = [matrix[i][i + 1] for i in range(len(matrix) - 1)]
    influences = {"layer": data["block_influence"]}
    if data.get("attention_influence"):
        influences |= {"its attention": data["attention_influence"], "its MLP": data["mlp_influence"]}
    st.plotly_chart(neighbour_line(next_layer), key="redundancy_neighbours")
    st.plotly_chart(influence_lines(influences), key="redundancy_influence")
    st.caption(f"**{TITLES['block_influence']}**: {TERMS['block_influence']}")
    names = {"norm": "mean", "norm_median": "median", "norm_max": "largest"}
    norms = {title: data[name] for name, title in names.items() if data.get(name)}
    st.plotly_chart(norm_line(norms), key="redundancy_norm")
if data.get("warning"):
    st.warning(data["warning"], icon=":material/warning:")
st.caption(
    f"Measured on {data['tokens']:,} tokens in {data['conditions']['dtype']}, in {data['conditions']['seconds']} s"
)
command_line(*arguments)
next_step("pages/preview.py", "See which windows merge")
