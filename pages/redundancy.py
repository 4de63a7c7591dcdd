"""Redundancy page: how similar the layers are."""

from dataclasses import replace
from functools import partial
from typing import Any

import streamlit as st

from pages.shared.choices import named_choice
from pages.shared.fields import number
from pages.shared.frame import (
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
from swm.registry import METRICS
from swm.reporting.glossary import TERMS, TITLES
from swm.reporting.heatmaps import CONTRASTS, Lines, Map, difference, maps_figure
from swm.settings import SKIPPED_TOKENS
from swm.similarity.blocks import (
    band_sentence,
    first_tokens_sentence,
    long_states_sentence,
    pair_sentence,
    similar_patches,
    unmerged_sentence,
)
from swm.similarity.measure import PARTS, Measure, in_words
from swm.workspace.experiments import Experiment, list_experiments

OWN, NONE, CURRENT, WHOLE = "calibration text", "none", "the preview", "the same with the first tokens"
BESIDE = "the other kind of metric"


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


def companion(measure: Measure) -> Measure:
    """The same measurement by the other kind of metric: cosine beside CKA, CKA beside cosine."""
    return replace(measure, metric="cosine" if measure.metric.startswith("cka") else "cka")


def map_of(data: dict[str, Any], title: str, level: float | None = None) -> Map:
    """A measurement as a map; blocks of layers at least this similar are marked."""
    metric = METRICS[data["metric"]].title if data.get("metric") in METRICS else ""
    return Map(data["matrix"], metric, title, () if level is None else similar_patches(data["matrix"], level))


def lines_of(data: dict[str, Any]) -> list[Lines]:
    """What is known of each layer alone."""
    matrix = data["matrix"]
    influences = {"layer": data["block_influence"]}
    if data.get("attention_influence"):
        influences |= {"attention": data["attention_influence"], "MLP": data["mlp_influence"]}
    names = {"norm": "mean", "norm_median": "median", "norm_max": "largest"}
    return [
        Lines("like the next", {"": [matrix[i][i + 1] for i in range(len(matrix) - 1)]}),
        Lines("influence", influences, log=True),
        Lines("norm", {title: data[name] for name, title in names.items() if data.get(name)}, log=True),
    ]


experiment = require_experiment(start_page("Redundancy", "See how similar each pair of layers is."))
most_skipped = max(0, min(64, experiment.settings.length - 4))
controls = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
metric = named_choice(
    controls.selectbox,
    "Metric",
    {name: METRICS[name].title for name in METRICS},
    "redundancy_metric",
    width=220,
    help="CKA (debiased with a linear or Gaussian kernel, or biased as first published) ignores shift, rotation and "
    "scale of the hidden states. Cosine and angular similarity do not.",
)
more = controls.popover("Text and marks", icon=":material/tune:")
part = more.segmented_control(
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
text = more.selectbox(
    "Text",
    [OWN, *(f"task:{task}" for task in TASKS)],
    key="redundancy_text",
    bind="query-params",
    persist_state="session",
    help="The experiment's calibration text, or the prompts of a zero-shot task.",
)
skip = number(
    "Skip tokens",
    0,
    most_skipped,
    min(SKIPPED_TOKENS, most_skipped),
    place=more,
    key="redundancy_skip",
    bind="query-params",
    persist_state="session",
    help="Leaves out this many tokens at the start of each text. The first ones have a very large norm in most models, "
    "and make any two layers look similar.",
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
    outlines = [CURRENT, *(run.name for run in runs), NONE]
    shown = named_choice(
        more.selectbox,
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
        place=more,
        step=0.005,
        format="%.3f",
        key="redundancy_level",
        bind="query-params",
        help="Dotted outlines: blocks of neighbouring layers in which every pair is at least this similar.",
    )
    second_measure, whole = companion(measure), replace(measure, skip_tokens=0)
    others = [BESIDE, *([WHOLE] if skip else []), *maps, NONE]
    other = named_choice(
        more.selectbox,
        "Second map",
        {name: name for name in others},
        "redundancy_other",
        help="Cosine beside CKA, or any other map of a model with the same number of layers, with the difference.",
    )
    contrast = named_choice(
        more.selectbox,
        "Colours",
        {name: name for name in CONTRASTS},
        "redundancy_contrast",
        help="From 0 to 1; stretched from the lowest to the highest similarity of two layers; or logarithmic in the "
        "difference from 1, which tells 0.9, 0.99 and 0.999 apart.",
    )
    windows = next((run.plan.windows for run in runs if run.name == shown), ())
    if shown == CURRENT:
        windows = current_windows(experiment)
    second = None
    if other in (BESIDE, WHOLE):
        second = experiment.similarity((second_measure if other == BESIDE else whole).name)
    elif other in maps:
        second = maps[other]()

name = METRICS[metric].title
if clicked := [
    point
    for point in st.session_state.get("redundancy_map", {}).get("selection", {}).get("points", [])
    if "customdata" in point
]:
    st.query_params["pair"] = f"{int(clicked[0]['x'])}-{int(clicked[0]['y'])}"
pair = pair_in_address(len(matrix))
if pair:
    also = ""
    if second and other == BESIDE:
        also = f" {METRICS[second_measure.metric].title}: {second['matrix'][pair[0]][pair[1]]:.4f}."
    controls.markdown(f"**{pair_sentence(matrix, min(pair), max(pair), name)}**{also}")
else:
    controls.caption("Click a cell to read the values of that pair of layers.")
st.markdown(f"**{band_sentence(matrix, name)}**")

first_map = map_of(data, f"{name} of layer {part}s", level)
drawn, panels = [first_map], lines_of(data)
if second and other == BESIDE:
    drawn.append(map_of(second, f"{METRICS[second_measure.metric].title} of layer {part}s", level))
elif second:
    both = (replace(first_map, blocks=()), map_of(second, other))
    drawn, panels = [*both, difference(*both, "first minus second")], []
    if other == WHOLE:
        drawn[0] = replace(drawn[0], title=f"without the first {skip} tokens")
figure = maps_figure(drawn, panels, windows, pair, contrast)
st.plotly_chart(
    figure,
    key="redundancy_map",
    on_select="rerun",
    selection_mode="points",
    alt=f"Heat map of {name} between all pairs of {len(matrix)} layers. {band_sentence(matrix, name)}",
)
if other in (BESIDE, WHOLE) and second is None and not experiment.read_only:
    missing = second_measure if other == BESIDE else whole
    st.caption(f"The second map, {in_words(missing.name)}, has not been measured yet.")
    measure_button(experiment, missing, "redundancy_second", was_active)
if second and other == WHOLE:
    st.markdown(first_tokens_sentence(matrix, second["matrix"], skip, name))
blocks = first_map.blocks
outlined = [f"Solid outlines: windows of {shown}."] if windows else []
outlined += [f"Dotted: layers {', '.join(map(str, blocks))}, every pair at least {level:g}."] if blocks else []
st.caption(" ".join([*outlined, unmerged_sentence(matrix, level, windows)]))
medians, largest = (data.get(name, []) for name in ("norm_median", "norm_max"))
with st.expander("How to read the maps and lines"):
    st.markdown(
        f"**{TITLES['similarity']}**: {TERMS['similarity']}\n\n"
        "A bright square along the diagonal is a block of layers whose outputs carry nearly the same information: "
        "candidates for one window. It does not prove that a layer can be removed, since a small difference can "
        f"matter.\n\n**{TITLES['block_influence']}**: {TERMS['block_influence']}"
    )
    if largest and skip and metric.startswith("cka") and (sentence := long_states_sentence(medians, largest)):
        st.markdown(sentence)
    st.markdown(
        f"Measured on {data['tokens']:,} tokens in {data['conditions']['dtype']}, in {data['conditions']['seconds']} s."
    )
if data.get("warning"):
    st.warning(data["warning"], icon=":material/warning:")
next_step("pages/preview.py", "See which windows merge")
command_line(*arguments)
