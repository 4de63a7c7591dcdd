"""Home: what this is, the experiments, the latest runs, where to start."""

import streamlit as st

from pages.shared.frame import STEPS, shown_errors, start_page
from pages.shared.tables import runs_table
from swm.experiments import list_experiments

experiment = start_page(
    "Sliding-Window Merging Studio",
    "See which layers of a language model are redundant, merge them, heal the smaller model, compare both.",
)

left, right = st.columns([3, 2], gap="large")
with left, shown_errors():
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
    experiments, _ = list_experiments()
    table = runs_table(experiments)
    if table.empty:
        st.info("No run yet. Begin with an experiment.", icon=":material/science:")
    else:
        st.dataframe(table, hide_index=True)
