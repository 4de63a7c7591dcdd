"""Experiment page: choose a model and a calibration text, measure what the later pages need."""

import pandas as pd
import streamlit as st

from pages.shared.choices import named_choice
from pages.shared.fields import number
from pages.shared.frame import command_line, job_panel, shown_errors, start_page
from pages.shared.navigation import go_to, next_step
from pages.shared.new_experiment import EFFORT_TITLES, EFFORTS, model_choices, model_facts, text_preview
from pages.shared.plain import plain
from pages.shared.upload import upload
from swm.disk.files import demo_experiment
from swm.disk.names import EXAMPLE, check_new
from swm.errors import SwmError
from swm.jobs.child import create
from swm.registry import TEXTS
from swm.workspace.experiments import Experiment
from swm.workspace.housekeeping import copy_experiment, delete, rename
from swm.workspace.people import entries

current = start_page("Experiment", "Choose a model and the calibration text to measure its redundancy with.")


MORE = "More text gives more stable similarities, and a longer search."


def manage(experiment: Experiment) -> None:
    """Copy the experiment; if it is not a shipped one, also rename or delete it."""
    with st.container(horizontal=True), shown_errors():
        with st.popover("Copy", icon=":material/content_copy:"):
            suggested = f"my-{experiment.name.removeprefix(EXAMPLE)}"[:64]
            name = st.text_input("Name of the copy", suggested, max_chars=64, key=f"copy_name_{experiment.name}")
            st.caption("With all results and plans; models are not copied.")
            if st.button("Copy", type="primary", key="experiment_copy"):
                copy_experiment(experiment, name)
                go_to("pages/experiment.py", name)
        if not experiment.read_only:
            with st.popover("Rename", icon=":material/edit:", key=f"renaming_{experiment.name}"):
                name = st.text_input("New name", experiment.name, max_chars=64, key=f"new_name_{experiment.name}")
                st.caption("A sweep finds its experiments by name, and would create a renamed one again.")
                if st.button("Rename", type="primary", key="experiment_rename"):
                    go_to("pages/experiment.py", rename(experiment, name).name)
            with st.popover("Delete", icon=":material/delete:"):
                st.markdown(f"Deletes **{experiment.name}** with all its runs and models. This cannot be undone.")
                if st.button("Delete for good", type="primary", key="experiment_delete"):
                    delete(experiment)
                    go_to("app.py", "")


def history(experiment: Experiment) -> None:
    """Who did what with the experiment, newest first."""
    if done := entries(experiment.name):
        with st.expander("What was done, and by whom"):
            st.dataframe(pd.DataFrame(done), hide_index=True)


def new_name() -> str:
    """The name of the new experiment; an error below the field says why it cannot be used."""
    name = st.text_input(
        "Name",
        "my-model",
        max_chars=64,
        key="experiment_name",
        bind="query-params",
        help="Lower-case letters, digits and hyphens.",
    )
    problem = st.empty()  # always there: fields below a line that comes or goes lose what is being typed
    try:
        check_new(name)
    except SwmError as error:
        problem.error(plain(str(error)), icon=":material/error:")
        return ""
    return name


def how_much() -> tuple[int, int, int]:
    """Number of texts, tokens of each, and the seed."""
    effort = named_choice(st.selectbox, "How thoroughly", EFFORT_TITLES, "experiment_effort", help=MORE)
    if effort != "own":
        return *EFFORTS[effort], 1234
    columns = st.columns(3, gap="small")
    count = number("Texts", 1, 100_000, 10, place=columns[0], key="experiment_count", bind="query-params")
    length = number("Tokens per text", 8, 131_072, 128, place=columns[1], key="experiment_length", bind="query-params")
    seed = number(
        "Seed",
        0,
        2**31 - 1,
        1234,
        place=columns[2],
        key="experiment_seed",
        bind="query-params",
        help="Determines which texts are drawn.",
    )
    return count, length, seed


refused = ""
if making := st.session_state.pop("experiment_new", None):
    # Before anything that redraws itself: that would cut off the change of page.
    try:
        with st.spinner("Reading model and text. The first time, this can take half a minute."):
            create(*making)
    except SwmError as error:
        refused = str(error)
    else:
        go_to("pages/redundancy.py", making[0])

if demo_experiment():
    st.info(
        "This demo is read-only: you can look at everything, but not start or change anything.",
        icon=":material/visibility:",
    )
else:
    with st.container(border=True, key="new_experiment"):
        st.subheader("New experiment", anchor=False)
        left, right = st.columns(2, gap="large")
        with left:
            name = new_name()
            here = model_choices()
            model = st.selectbox(
                "Model",
                list(here),
                format_func=lambda one: f"{one} ({here[one]})" if one in here else one,
                key="experiment_model",
                bind="query-params",
                help="The models that are on this machine.",
            )
            with st.container(horizontal=True, vertical_alignment="bottom"):
                typed = st.text_input(
                    "Or a folder, .gguf file or hub id",
                    key="experiment_typed",
                    bind="query-params",
                    placeholder="/models/my-model or org/model",
                    help="Takes precedence over the model chosen above.",
                )
                upload()
            model = typed.strip() or model
            about_model = st.container()  # beside the field that an error is about
            dtype = st.selectbox(
                "Precision (dtype)",
                ("auto", "float32", "bfloat16", "float16"),
                key="experiment_dtype",
                bind="query-params",
                help="auto uses the checkpoint's. float32 is more accurate and needs twice the memory of bfloat16.",
            )
        with right:
            texts = st.selectbox(
                "Calibration text",
                [name for name, text in TEXTS.items() if "calibration" in text.purposes],
                key="experiment_texts",
                bind="query-params",
                help="The texts that come with the app.",
            )
            own_texts = st.text_input(
                "Or a .txt or .jsonl file, or a hub data set",
                key="experiment_own_texts",
                bind="query-params",
                placeholder="/data/my-text.jsonl or org/name",
                help="Takes precedence over the text chosen above.",
            )
            texts = own_texts.strip() or texts
            readable = text_preview(texts)
            count, length, seed = how_much()
        with about_model:
            works = model_facts(model or "", dtype, count * length)
        ready = bool(name and model and works and readable)
        arguments = ["create", name or "NAME", "--model", model or "MODEL", "--texts", texts]
        arguments += ["--count", str(count), "--length", str(length), "--seed", str(seed), "--dtype", dtype]
        arguments += ["--measure"]
        st.button(
            "Create and measure",
            type="primary",
            disabled=not ready,
            key="experiment_create",
            on_click=lambda: st.session_state.update(experiment_new=(name, arguments)),
        )
        if refused:
            st.error(plain(refused), icon=":material/error:")
        command_line(*arguments)

if current:
    with st.container(border=True):
        st.subheader(current.name, anchor=False)
        facts = current.model_facts
        columns = st.columns(4)
        columns[0].metric("Layers", facts["layers"])
        columns[1].metric("Parameters", f"{facts['parameters'] / 1e6:,.1f} M")
        columns[2].metric("Weights", f"{facts['size_bytes'] / 2**20:,.0f} MiB", help=f"Size in {facts['dtype']}.")
        columns[3].metric("Hidden size", f"{facts['width']:,}", help="Length of each token's hidden state.")
        with shown_errors():
            job_panel(current)
        if not demo_experiment():
            manage(current)
            history(current)
        next_step("pages/redundancy.py", "See which layers are redundant")
