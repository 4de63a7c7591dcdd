"""Report page: one self-contained file for stakeholders."""

import streamlit as st

from pages.shared.frame import caption, command_line, require_experiment, shown_errors, start_page
from swm.report import commands, model_card, report_html

experiment = require_experiment(
    start_page("Report", "One file that opens without a network: what was done, and what it gave.")
)
caption(experiment)
with shown_errors():
    left, right = st.columns(2)
    left.download_button(
        "Download the report (HTML)",
        lambda: report_html(experiment),
        f"{experiment.name}.html",
        "text/html",
        key="report_html",
        type="primary",
        icon=":material/download:",
    )
    runs = [run for run in experiment.runs() if not run.is_baseline]
    for run in runs:
        right.download_button(
            f"Model card of {run.name} (Markdown)",
            lambda run=run: model_card(run),
            f"{run.name}.md",
            "text/markdown",
            key=f"report_card_{run.name}",
            icon=":material/description:",
        )
    st.subheader("Preview", anchor=False)
    st.iframe(report_html(experiment), height=900)
    st.subheader("The commands that repeat it", anchor=False)
    st.code("\n".join(commands(experiment)), language="bash", wrap_lines=True)
command_line("report", experiment.name, "--output", f"{experiment.name}.html")
