"""Experiment page: choose a model and a calibration text, measure what the later pages need."""

import streamlit as st

from pages.shared.frame import caption, command_line, go_to, job_panel, next_step, shown_errors, start_page
from swm.jobs.child import call, start
from swm.registry import TEXTS
from swm.workspace.experiments import Experiment
from swm.workspace.files import demo_experiment
from swm.workspace.names import check_name

current = start_page("Experiment", "Choose a model and the calibration text to measure its redundancy with.")

if current:
    with st.container(border=True):
        st.subheader(current.name, anchor=False)
        caption(current)
        facts = current.model_facts
        columns = st.columns(4)
        columns[0].metric("Layers", facts["layers"])
        columns[1].metric("Parameters", f"{facts['parameters'] / 1e6:,.1f} M")
        columns[2].metric("Weights", f"{facts['size_bytes'] / 2**20:,.0f} MiB", help=f"Size in {facts['dtype']}.")
        columns[3].metric("Hidden size", f"{facts['width']:,}", help="Length of each token's hidden state.")
        with shown_errors():
            job_panel(current)
        next_step("pages/redundancy.py", "See which layers are redundant")

if demo_experiment():
    st.info(
        "This demo is read-only: you can look at everything, but not start or change anything.",
        icon=":material/visibility:",
    )
    st.stop()
st.subheader("New experiment", anchor=False)
with st.form("experiment_form", border=True):
    left, right = st.columns(2, gap="large")
    name = left.text_input(
        "Name", "my-model", max_chars=64, key="experiment_name", help="Lower-case letters, digits and hyphens."
    )
    model = left.text_input(
        "Model",
        "smollm2-135m",
        key="experiment_model",
        help="The bundled smollm2-135m, a Hugging Face folder, a .gguf file, or a hub id such as org/model.",
    )
    dtype = left.selectbox(
        "Precision (dtype)",
        ("auto", "float32", "bfloat16", "float16"),
        key="experiment_dtype",
        help="auto uses the checkpoint's dtype. float32 is more accurate but needs twice the memory of bfloat16.",
    )
    texts = right.selectbox(
        "Calibration text",
        [name for name, text in TEXTS.items() if "calibration" in text.purposes],
        key="experiment_texts",
        accept_new_options=True,
        help="Choose one, or type the path of a .txt or .jsonl file or the id of a hub dataset (org/name).",
    )
    count = right.number_input(
        "Texts",
        1,
        100_000,
        10,
        key="experiment_count",
        help="More texts give more stable similarities and a longer search.",
    )
    length = right.number_input(
        "Tokens per text", 8, 131_072, 128, key="experiment_length", help="The paper's released code uses 128."
    )
    seed = right.number_input(
        "Seed", 0, 2**31 - 1, 1234, key="experiment_seed", help="Determines which texts are drawn."
    )
    submitted = st.form_submit_button("Create and measure", type="primary")

arguments = ["create", name, "--model", model, "--texts", texts, "--count", str(count), "--length", str(length)]
arguments += ["--seed", str(seed), "--dtype", dtype]
if submitted:
    with shown_errors(), st.spinner("Loading the model and the text. The first time, this can take half a minute."):
        check_name(name)
        call(arguments)
        start(Experiment.open(name), "measure", ["measure", name])
    go_to("pages/redundancy.py", name)
command_line(*arguments)
