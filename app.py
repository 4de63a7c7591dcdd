"""Home page: the newest run of the experiment, where to start, how it works, all runs."""

import streamlit as st

from pages.shared.frame import STEPS, command_line, next_step, shown_errors, start_page
from pages.shared.live import layers_picture
from pages.shared.tables import runs_table
from pages.shared.verdict import judged_rows, show_verdict
from swm.reporting.compare import compare, flat_rows, row_name
from swm.workspace.experiments import list_experiments

experiment = start_page(
    "Sliding-Window Merging Studio",
    "See which layers of a language model are redundant, merge them, heal the smaller model and compare both.",
)

with shown_errors():
    rows = flat_rows(compare(experiment)) if experiment else []
    newest = max(reversed(rows), key=lambda row: (not row["control"], row["created"])) if rows else {}
    if experiment and len(rows) > 1:
        with st.container(border=True):
            st.markdown(f":gray[{experiment.name}: {row_name(newest)}]")
            show_verdict(judged_rows(experiment, [newest])[0])
            plan = experiment.run(newest["run"]).plan
            layers_picture(plan, experiment.model_facts, key="home_layers")
            next_step("pages/compare.py", "See all scores")

left, right = st.columns(2, gap="large")
with left:
    st.subheader("Where to start", anchor=False)
    for number, (page, label, sentence) in enumerate(STEPS[:5], 1):
        link, description = st.columns([1, 2], vertical_alignment="center")
        link.page_link(page, label=f"{number}. {label}")
        description.markdown(f":gray[{sentence}]")
with right:
    st.subheader("How it works", anchor=False)
    st.markdown(
        "Neighbouring layers of a language model often do nearly the same thing. A window slides from the top layer "
        "down. It grows as long as merging its layers into one keeps the model's output similar enough to the "
        "original's; then those layers are merged and the next window starts below. LoRA training then heals the "
        "smaller model."
    )
    st.caption("Method: Sliding-Window Merging, arXiv:2502.19159")

with shown_errors():
    st.subheader("Runs", anchor=False)
    table = runs_table(list_experiments()[0])
    if table.empty:
        st.info("No runs yet. Create an experiment first.", icon=":material/science:")
    else:
        st.dataframe(table, hide_index=True)
command_line("list")
