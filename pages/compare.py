"""Compare page: scores, perplexity, speed and size before and after."""

import streamlit as st

from pages.shared.frame import (
    caption,
    command_line,
    next_step,
    require_experiment,
    run_metrics,
    shown_errors,
    start_page,
)
from pages.shared.tables import comparison_table
from swm.charts import scores_chart
from swm.compare import compare, csv_text, flat_rows, row_name

experiment = require_experiment(
    start_page("Compare", "The original and the merged models: what it cost and what it gained.")
)
caption(experiment)

with shown_errors():
    rows = compare(experiment)
flat = flat_rows(rows)
names = [row_name(row) for row in flat]
shown = st.multiselect("Runs", names, default=names, key="compare_runs", help="The original is always the reference.")
flat = [row for row, name in zip(flat, names, strict=True) if name in shown]
if not any(row["scores"] for row in flat):
    message = "Nothing has been evaluated yet. Evaluate a run, and the original." if names == shown else "Choose a run."
    st.info(message, icon=":material/science:")
    next_step("pages/run.py", "Evaluate a run")
    st.stop()

run_metrics(flat[-1])
st.caption(f"{row_name(flat[-1])}, and the difference to the original")

st.table(comparison_table(flat))
st.caption(
    "± is one standard error over the documents; brackets are 95 % intervals over the texts. Low perplexity is better."
)
scored = [row for row in flat if row["scores"]]
st.plotly_chart(scores_chart(scored, [row_name(row) for row in scored]), key="compare_scores")
st.download_button(
    "Download as CSV",
    lambda: csv_text(rows),
    f"{experiment.name}.csv",
    "text/csv",
    key="compare_csv",
    icon=":material/download:",
)
command_line("compare", experiment.name, "--json")
next_step("pages/playground.py", "Try both models on a prompt")
