"""Compare page: scores, perplexity, speed and size before and after."""

import streamlit as st

from pages.shared.frame import caption, command_line, next_step, require_experiment, shown_errors, start_page
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
    st.info("Nothing has been evaluated yet. Evaluate a run, and the original.", icon=":material/science:")
    next_step("pages/run.py", "Evaluate a run")
    st.stop()

last = flat[-1]
deltas = last["deltas"]
columns = st.columns(5)
columns[0].metric("Parameters", f"{last['parameters'] / 1e6:,.1f} M", f"{deltas['parameters'] / 1e6:,.1f} M", "off")
if deltas["average"] is not None:
    columns[1].metric(
        "Average score", f"{100 * last['average']:.1f} %", f"{100 * deltas['average']:+.1f} points", "off"
    )
if deltas["perplexity"] is not None:
    columns[2].metric(
        "Perplexity", f"{last['perplexity']:.1f}", f"{deltas['perplexity']:+.1f}", "off", help="Lower is better."
    )
if deltas["tokens_per_second"] is not None:
    columns[3].metric(
        "Tokens per second", f"{last['tokens_per_second']:.1f}", f"{deltas['tokens_per_second']:+.1f}", "off"
    )
if deltas["latency_ms"] is not None:
    columns[4].metric("Latency", f"{last['latency_ms']:,.0f} ms", f"{deltas['latency_ms']:+,.0f} ms", "off")
st.caption(f"{row_name(last)}, and the difference to the original")

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
