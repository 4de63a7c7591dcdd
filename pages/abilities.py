"""Abilities page: what each layer does, by how much worse the model answers without it."""

from typing import Any

import streamlit as st

from pages.shared.choices import named_choice
from pages.shared.frame import command_line, job_panel, require_experiment, shown_errors, start_button, start_page
from pages.shared.live import current_windows
from pages.shared.navigation import next_step
from pages.shared.own_requests import own_requests
from pages.shared.plain import plain
from swm.errors import TextError
from swm.registry import ABILITIES, as_sentence
from swm.reporting.abilities import PARTS, ability_map, conclusion, has_parts, percent, worst_requests
from swm.reporting.ability_charts import abilities_heatmap
from swm.settings import QUICK_REQUESTS, USUAL_REQUESTS
from swm.texts.requests import ability_title
from swm.workspace.estimate import ability_seconds, about
from swm.workspace.experiments import Experiment

QUICK, WHOLE = "quick", "all"
WORST = 5  # requests shown of a clicked cell


def measure_form(experiment: Experiment, was_active: bool, known: bool) -> None:
    """What to measure, how long that takes, and the button."""
    place = st.popover("Measure more", icon=":material/tune:") if known else st.container()
    look = named_choice(
        place.segmented_control,
        "How closely",
        {
            QUICK: f"quick: 6 abilities, {QUICK_REQUESTS} requests",
            WHOLE: f"whole: {len(ABILITIES)} abilities, {USUAL_REQUESTS} requests",
        },
        "abilities_look",
        required=True,
    )
    parts = place.checkbox("Attention and MLP apart, too", key="abilities_parts", bind="query-params")
    with place:
        own = own_requests()
    quick = look == QUICK
    count = QUICK_REQUESTS if quick else USUAL_REQUESTS
    names = [name for name, each in ABILITIES.items() if each.quick or not quick]
    arguments = ["abilities", experiment.name, "--abilities", ",".join([look, *own]), "--requests", str(count)]
    arguments += ["--parts"] if parts else []
    seconds = ability_seconds(experiment.model_facts, experiment.cost(), len(names) + len(own), count, parts)
    with place:
        if seconds:
            st.caption(f"Takes {about(seconds)} on this machine. What is known is kept; a cancelled job goes on later.")
        if not was_active:
            start_button("Measure", experiment, "abilities", arguments, "abilities_measure")
        command_line(*arguments)


def clicked_cell() -> tuple[str, int] | None:
    """The ability and the layer of the cell that was clicked last."""
    points = st.session_state.get("abilities_map", {}).get("selection", {}).get("points", [])
    found = [point for point in points if "customdata" in point]
    return (str(found[0]["customdata"][0]), int(found[0]["x"])) if found else None


def show_worst(data: dict[str, Any], ability: str, layer: int, part: str) -> None:
    """The requests that suffered most from leaving out a layer, with the answers before and after."""
    variant = str(layer) if part == "layer" else f"{layer} {part}"
    st.markdown(f"**{ability_title(ability)} without {'' if part == 'layer' else f'the {part} of '}layer {layer}**")
    try:
        worst = worst_requests(data, ability, variant, WORST)
    except TextError as error:
        st.caption(plain(str(error)))
        return
    for each in worst:
        with st.container(border=True):
            st.text(f"…{each.question[-300:]}")
            st.markdown(f"right: **{plain(each.answer[:300])}** · bits per byte {each.before:.2f} → {each.after:.2f}")
            if each.picked_before:
                st.caption(plain(f"picked: {each.picked_before[:120]} → {each.picked_after[:120]}"))


experiment = require_experiment(start_page("Abilities", "See what each layer does."))
with shown_errors():
    was_active = experiment.state().active
    data = experiment.read("abilities.json")
    if not data or not data["abilities"]:
        st.markdown(
            "A layer is left out, and the model answers requests: facts, reading, logic, code. "
            "Where it needs more bits for the right answer, the layer was needed for that."
        )
        measure_form(experiment, was_active, known=False)
        job_panel(experiment, version=lambda: experiment.changed("abilities.json"), was_active=was_active)
        st.stop()
    part = PARTS[0]
    if has_parts(data):
        part = named_choice(
            st.segmented_control, "Leave out", {name: name for name in PARTS}, "abilities_part", required=True
        )
    found = ability_map(data, experiment.layer_count, part)
    windows = current_windows(experiment)
    sentence = conclusion(found)

st.markdown(
    f"**{sentence or 'No run of layers is needed by one ability and hardly by another, as far as can be told.'}**"
)
st.plotly_chart(
    abilities_heatmap(found, windows, part),
    key="abilities_map",
    on_select="rerun",
    selection_mode="points",
    alt=f"Heat map of {len(found.abilities)} abilities by {found.layers} layers. {sentence}",
)
outlined = "Outlines: windows of the plan on Preview. " if windows else ""
least, most = min(found.requests.values(), default=0), max(found.requests.values(), default=0)
st.caption(
    f"Orange: more bits per byte for the right answer without the {part}; pale where the 95 % interval contains 0. "
    f"{outlined}{least if least == most else f'{least} to {most}'} requests each, none of them used to report a plan. "
    "Click a cell for the requests that suffered most."
)
if (cell := clicked_cell()) and cell[0] in found.rises and cell[1] < found.layers:
    st.caption(f"{ability_title(cell[0])}: {percent(found.rises[cell[0]][cell[1]])} bits.")
    show_worst(data, *cell, part)
with st.expander("What the abilities are"):
    for name in found.abilities:
        what = as_sentence(ABILITIES[name].help) if name in ABILITIES else "your own requests."
        st.markdown(f"**{plain(ability_title(name))}**: {what}")
    st.markdown(
        "A rise is the mean of bits per byte without the layer, divided by that of the original. Single layers do not "
        "simply add up: a plan that removes several is measured as a whole."
    )
measure_form(experiment, was_active, known=True)
job_panel(experiment, version=lambda: experiment.changed("abilities.json"), was_active=was_active)
next_step("pages/preview.py", "Choose a plan by what you need to keep")
