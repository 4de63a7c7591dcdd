"""Sweeps page: many runs from one file, the state of each, and the best so far."""

import streamlit as st

from pages.shared.choices import check_address, stop_if_gone
from pages.shared.frame import command_line, job_panel, shown_errors, start_button, start_page
from pages.shared.navigation import go_to
from pages.shared.new_sweep import new_sweep
from pages.shared.plain import plain
from pages.shared.tables import sweep_table
from swm.disk.files import demo_experiment
from swm.jobs.sweep import ENDED, sweep_rows, sweeps
from swm.reporting.figures import csv_text
from swm.reporting.glossary import TERMS
from swm.reporting.names import text_name
from swm.reporting.numbers import number
from swm.reporting.row import percent_interval

start_page("Sweeps", "Many runs from one file: the state of each, and the best so far.")
if demo_experiment():
    st.caption("read-only demo")
readable, broken = sweeps()
for message in broken:
    st.warning(plain(message), icon=":material/warning:")
if not demo_experiment():
    new_sweep()
if not readable:
    st.info(
        "There are no sweeps yet. A sweep runs every combination of models, texts, methods and ways to heal. Choose "
        "them above, or start a file: those in assets/sweeps hold the paper's settings.",
        icon=":material/grid_on:",
    )
    command_line("sweep", "assets/sweeps/smollm2-135m.yaml")
    st.stop()

names = [sweep.name for sweep in readable]
stop_if_gone("sweeps_name", names, "Sweep")
check_address("sweeps_name", names, "sweep")
sweep = readable[
    names.index(st.selectbox("Sweep", names, key="sweeps_name", bind="query-params", persist_state="session"))
]
with shown_errors():
    cells = sweep_rows(sweep)
ended = sum(cell.state in ENDED for cell in cells)
measured = [cell.row for cell in cells if cell.row]
scored = [row for row in measured if row.average is not None]
best_score = max(scored, key=lambda row: row.average or 0.0, default=None)
lowest = min((row for row in measured if row.perplexity), key=lambda row: row.perplexity or 0.0, default=None)
measured_on = f", {text_name(lowest.perplexity_text)}" if lowest and lowest.perplexity_text else ""
left, middle, right = st.columns([1, 2, 2])
left.metric("Runs done or failed", f"{ended} of {len(cells)}")
with middle:
    st.metric(
        "Best average accuracy so far",
        f"{best_score.average:.1%}" if best_score else "–",
        help=f"{TERMS['accuracy']} Mean over the tasks; differences within the interval mean little.",
    )
    if best_score:
        low, high = percent_interval(best_score.average or 0.0, best_score.average_stderr or 0.0)[1:]
        st.caption(f"95 % interval {low:.1f} to {high:.1f} %; {best_score.run}, {best_score.layers} layers")
with right:
    st.metric(
        f"Lowest perplexity so far{measured_on}",
        number(lowest.perplexity, 1) if lowest else "–",
        help=f"{TERMS['perplexity']} Fewer layers usually mean a higher perplexity: compare runs of the same depth.",
    )
    st.caption(f"{lowest.run}, {lowest.layers} layers" if lowest else "")
table = st.dataframe(
    sweep_table(cells),
    hide_index=True,
    on_select="rerun",
    selection_mode="single-row",
    key=f"sweeps_table_{sweep.name}",
)
selected = table["selection"]["rows"]
if selected and cells[selected[0]].row and st.button("Open this run's experiment", icon=":material/arrow_forward:"):
    go_to("pages/compare.py", cells[selected[0]].experiment)
st.download_button(
    "Download as CSV", csv_text(scored), f"{sweep.name}-sweep.csv", "text/csv", on_click="ignore", key="sweeps_csv"
)
job_panel(sweep, version=lambda: sum(state in ENDED for state in sweep.states().values()))
for name, reason in sweep.failures().items():
    st.caption(plain(f"{name}: {reason}"))
with st.expander("What this sweep runs"):
    for cell in sweep.file.cells[:20]:
        st.code(" ".join(["python -m swm", *cell.run_command]), language="bash", wrap_lines=True)
    if len(sweep.file.cells) > 20:
        st.caption(f"And {len(sweep.file.cells) - 20} more.")
command = ["sweep", str(sweep.folder / "sweep.yaml")]
idle = not sweep.state().active and any(cell.state != "done" for cell in cells)  # failed runs are tried again
if idle:
    with shown_errors():
        start_button("Resume this sweep", sweep, "sweep", command, "sweeps_start")
command_line(*command)
