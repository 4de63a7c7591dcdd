"""Home: what this is, the experiments, the latest runs, where to start."""

import streamlit as st

from pages.shared.frame import STEPS, command_line, next_step, run_metrics, shown_errors, start_page
from pages.shared.live import layers_picture
from pages.shared.tables import runs_table
from swm.reporting.compare import compare, flat_rows, row_name
from swm.workspace.experiments import list_experiments

experiment = start_page(
    "Sliding-Window Merging Studio",
    "See which layers of a language model are redundant, merge them, heal the smaller model, compare both.",
)

with shown_errors():
    rows = flat_rows(compare(experiment)) if experiment else []
    newest = max(reversed(rows), key=lambda row: row["created"]) if rows else {}
    if experiment and len(rows) > 1:
        with st.container(border=True):
            st.markdown(f"**{experiment.name}**: {row_name(newest)}, and the difference to the original")
            run_metrics(newest)
            plan = experiment.run(newest["run"]).plan
            layers_picture(plan, experiment.model_facts, key="home_layers")
            next_step("pages/compare.py", "All scores, before and after")

left, right = st.columns(2, gap="large")
with left:
    st.subheader("Where to start", anchor=False)
    for number, (page, label, sentence) in enumerate(STEPS[:5], 1):
        name, text = st.columns([1, 2], vertical_alignment="center")
        name.page_link(page, label=f"{number}. {label}")
        text.markdown(f":gray[{sentence}]")
with right:
    st.subheader("How it works", anchor=False)
    st.markdown(
        "Neighbouring layers of a language model often do nearly the same. A window slides from the top layer down: "
        "while the model with the window merged into one layer stays similar enough to the original, the window grows; "
        "else what was accepted is merged and the next window begins. LoRA then heals the smaller model."
    )
    st.caption("Method: Sliding-Window Merging, arXiv:2502.19159")

with shown_errors():
    st.subheader("Runs", anchor=False)
    table = runs_table(list_experiments()[0])
    if table.empty:
        st.info("No run yet. Begin with an experiment.", icon=":material/science:")
    else:
        st.dataframe(table, hide_index=True)
command_line("list")
