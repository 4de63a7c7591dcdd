"""Report page: one self-contained HTML file for stakeholders, and the exports of each run."""

from pathlib import Path

import streamlit as st

from pages.shared.frame import command_line, job_panel, require_experiment, shown_errors, start_page
from pages.shared.manage_run import free_name, offer_download, offer_weights
from swm.registry import EXPORT_FORMATS
from swm.reporting.commands import commands
from swm.reporting.report import report_html
from swm.workspace.experiments import Experiment


@st.cache_data(max_entries=4, show_spinner=False)
def cached_report(folder: str, changed: list[tuple[str, int]]) -> str:
    """The report as HTML, cached until one of the files that it shows changes."""
    return report_html(Experiment(Path(folder)))


experiment = require_experiment(start_page("Report", "Download the results as one HTML file that opens offline."))
with shown_errors():
    with st.spinner("Building the report"):
        html = cached_report(str(experiment.folder), experiment.results_changed())
    st.download_button(  # the text itself: a click while one that is made later is replaced would be lost
        "Download the report (HTML)",
        html,
        f"{experiment.name}.html",
        "text/html",
        on_click="ignore",
        key="report_html",
        type="primary",
        icon=":material/download:",
    )
    runs = [run for run in experiment.runs() if not run.is_baseline]
    with st.expander("Files of the runs"), st.container(horizontal=True):
        for run in runs:
            for form in EXPORT_FORMATS.values():
                if form.text and form.fits(run):
                    offer_download(run, form, f"{form.title} of {run.name} ({form.suffix})", run.name, "report")
                elif form.write and form.suffix and run.has_model and not experiment.read_only:
                    offer_weights(run, form, f"{form.title} of {run.name}", free_name(run, form), "report")
    for run in runs:
        if run.state().stage == "export":
            st.caption(run.name)
            job_panel(run)
    with st.container(key="report_preview"):
        st.iframe(html, height=900)
    with st.expander("Commands to reproduce these results"):
        st.code("\n".join(commands(experiment)), language="bash", wrap_lines=True)
command_line("report", experiment.name, "--output", f"{experiment.name}.html")
