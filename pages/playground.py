"""Playground page: one prompt, two models, answers as they come; each model lives in a child process until then."""

import streamlit as st

from pages.shared.frame import caption, command_line, next_step, require_experiment, shown_errors, start_page
from swm.jobs import stream

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a little bear who",
    "Question: What do plants need to grow?\nAnswer:",
)

experiment = require_experiment(start_page("Playground", "One prompt, two models: how the merged model writes."))
caption(experiment)
with shown_errors():
    usable = [run.name for run in experiment.runs() if run.is_baseline or run.has_model]
if experiment.read_only:
    st.info(
        "The results that ship with the program have no weights. Make your own with the same settings: "
        "`python -m swm demo`, or create an experiment.",
        icon=":material/info:",
    )
    next_step("pages/experiment.py", "Create an experiment")
    st.stop()

example = st.selectbox("Start from", PROMPTS, key="playground_example", help="Or write your own below.")
prompt = st.text_area("Prompt", example, key=f"playground_prompt_{PROMPTS.index(example)}", max_chars=20_000)
left, right, third = st.columns(3)
first = left.selectbox("Model", usable, key="playground_first")
second = right.selectbox("and model", usable, index=len(usable) - 1, key="playground_second")
tokens = third.number_input("Tokens", 1, 1000, 48, key="playground_tokens", help="Greedy decoding, at most so many.")
if st.button("Answer", type="primary", disabled=not prompt.strip(), key="playground_go"):
    for column, name in zip(st.columns(2, gap="large"), (first, second), strict=True):
        with column, shown_errors():
            st.subheader(name, anchor=False)
            st.write_stream(stream(["answer", experiment.name, name, "--prompt", prompt, "--tokens", str(tokens)]))
command_line("answer", experiment.name, second, "--prompt", prompt, "--tokens", str(tokens))
next_step("pages/report.py", "Make the report")
