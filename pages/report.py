"""Report page: one self-contained file for stakeholders."""

import streamlit as st

from pages.shared.frame import caption, command_line, require_experiment, shown_errors, start_page
from swm.reporting.commands import commands
from swm.reporting.export import model_card, recipe_json
from swm.reporting.report import report_html
from swm.workspace.recipe import fits_mergekit, mergekit_yaml

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
            f"Recipe of {run.name} (JSON)",
            lambda run=run: recipe_json(run),
            f"{run.name}-recipe.json",
            "application/json",
            key=f"report_recipe_{run.name}",
            icon=":material/receipt_long:",
            help="Makes the run again: python -m swm repeat FILE",
        )
        if fits_mergekit(experiment, run.plan):
            right.download_button(
                f"{run.name} for mergekit (YAML)",
                lambda run=run: mergekit_yaml(experiment, run.plan),
                f"{run.name}-mergekit.yaml",
                "application/yaml",
                key=f"report_mergekit_{run.name}",
                icon=":material/receipt_long:",
                help="The same layers kept by mergekit's passthrough merge; without healing.",
            )
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
