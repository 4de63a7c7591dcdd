"""Playground page: one prompt, up to three models, each loaded in a child process only while it answers."""

from itertools import chain

import streamlit as st

from pages.shared.frame import caption, command_line, next_step, plain, require_experiment, shown_errors, start_page
from swm.jobs.child import stream
from swm.settings import SAMPLE_PROMPTS
from swm.workspace.runs import BASELINE

PROMPTS = (
    *SAMPLE_PROMPTS,
    "The three most important inventions of the last century are",
)
MAX_MODELS = 3

experiment = require_experiment(start_page("Playground", "See how up to three models continue the same prompt."))
caption(experiment)
with shown_errors():
    usable = [run.name for run in experiment.runs() if run.is_baseline or run.has_model]
if experiment.read_only:
    st.info(
        "This example ships without model weights. Run `python -m swm demo` to repeat the demo with weights, or create "
        "an experiment.",
        icon=":material/info:",
    )
    next_step("pages/experiment.py", "Create an experiment")
    st.stop()

example = st.selectbox("Example prompt", PROMPTS, key="playground_example", help="Edit it below, or write your own.")
prompt = st.text_area("Prompt", example, key=f"playground_prompt_{PROMPTS.index(example)}", max_chars=20_000)
left, right = st.columns([3, 1], gap="large")
names = left.multiselect(
    "Models",
    usable,
    default=list(dict.fromkeys([usable[0], usable[-1]])),
    max_selections=MAX_MODELS,
    format_func=lambda name: "original" if name == BASELINE else name,
    key="playground_models",
    help=f"Up to {MAX_MODELS}. They answer one after another, so that each is timed alone.",
)
tokens = right.number_input("Max. new tokens", 1, 1000, 48, key="playground_tokens", help="Decoding is greedy.")
if st.button("Answer", type="primary", disabled=not (prompt.strip() and names), key="playground_go"):
    columns = st.columns(len(names), gap="large")
    for column, name in zip(columns, names, strict=True):
        column.subheader("original" if name == BASELINE else name, anchor=False)
    for name, column in zip(names, columns, strict=True):
        with column, shown_errors():
            arguments = ["answer", experiment.name, name, "--prompt", prompt, "--tokens", str(tokens)]
            speed: list[str] = []
            with st.spinner("Loading the model", show_time=True):
                pieces = stream(arguments, speed.append)
                first = next(pieces, "")
            st.write_stream(plain(piece) for piece in chain([first], pieces))
            st.caption("".join(speed))
if names:
    command_line("answer", experiment.name, names[-1], "--prompt", prompt, "--tokens", str(tokens))
next_step("pages/report.py", "Create the report")
