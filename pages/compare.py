"""Compare page: scores, perplexity, speed and size before and after, of any runs of any experiments."""

import streamlit as st

from pages.shared.frame import (
    caption,
    command_line,
    next_step,
    plain,
    require_experiment,
    run_metrics,
    shown_errors,
    start_page,
)
from pages.shared.tables import comparison_table, paired_table, runs_figures
from swm.evaluation.paired import flipped, paired
from swm.reporting.charts import differences_chart, score_against_speed, scores_chart
from swm.reporting.compare import comparable, compare, documents_of, flat_rows, row_name
from swm.reporting.csv_table import csv_text
from swm.workspace.experiments import list_experiments

MOST = 12  # runs shown at first


def asked(name: str, options: list[str], default: list[str]) -> list[str]:
    """What the address asks for when the app is opened, of what there is; later the default."""
    if "compare_opened" in st.session_state:
        return default
    return [value for value in st.query_params.get_all(name) if value in options] or default


experiment = require_experiment(
    start_page("Compare", "The original and the merged models: what it cost and what it gained.")
)
caption(experiment)

with shown_errors():
    by_name = {each.name: each for each in list_experiments()[0]}
    chosen = st.columns([1, 2], gap="large")
    experiments = chosen[0].multiselect(
        "Experiments",
        list(by_name),
        default=asked("experiments", list(by_name), [experiment.name]),
        key=f"compare_experiments_{experiment.name}",
        help="Runs of several experiments can stand side by side; each difference is to its own original.",
    )
    rows = [row for name in experiments for row in compare(by_name[name])]
flat = flat_rows(rows)
several = len(experiments) > 1
labels = {f"{row['experiment']}: {row_name(row)}" if several else row_name(row): row for row in flat}
shown = chosen[1].multiselect(
    "Runs",
    list(labels),
    default=asked("runs", list(labels), list(labels)[:MOST]),
    key=f"compare_runs_{'_'.join(experiments)}",
    help="What the page shows.",
)
st.query_params["experiments"], st.query_params["runs"] = experiments, shown  # the address can be passed on
st.session_state["compare_opened"] = True
labels = {label: row for label, row in labels.items() if label in shown}
flat = list(labels.values())
if not any(row["scores"] for row in flat):
    message = "Nothing has been evaluated yet. Evaluate a run, and the original." if shown else "Choose a run."
    st.info(message, icon=":material/science:")
    next_step("pages/run.py", "Evaluate a run")
    st.stop()

run_metrics(flat[-1])
st.caption(f"{row_name(flat[-1])}, and the difference to the original")

st.table(comparison_table(list(labels), flat))
st.caption(
    "± is one standard error over the documents; brackets are 95 % intervals over the texts. Low perplexity is better."
)
scored = {label: row for label, row in labels.items() if row["scores"]}
left, right = st.columns(2, gap="large")
with left:
    st.subheader("Accuracy by task", anchor=False)
    st.plotly_chart(scores_chart(list(scored.values()), list(scored)), key="compare_scores")
with right:
    st.subheader("Score against speed", anchor=False)
    alike, unlike = comparable(scored)
    st.plotly_chart(score_against_speed(list(alike.values()), list(alike)), key="compare_pareto")
    if unlike:
        st.caption(f"Left out, scored on other tasks or documents: {plain(', '.join(unlike))}.")

if len(scored) > 1:
    st.subheader("Is the difference more than noise?", anchor=False)
    ends = st.columns(2, gap="large")
    first = ends[0].selectbox("From", list(scored), key="compare_first", help="Usually the original.")
    second = ends[1].selectbox("to", list(scored), index=len(scored) - 1, key="compare_second", help="What changed.")
    with shown_errors():
        before, after = documents_of(scored[first]), documents_of(scored[second])
    compared = paired(before, after)
    if compared:
        left, right = st.columns([2, 3], gap="large", vertical_alignment="center")
        left.plotly_chart(differences_chart(compared), key="compare_differences")
        right.dataframe(paired_table(compared), hide_index=True)
        st.caption(
            "Both models answered the same documents. p: chance of a difference at least as large when there is none "
            "(exact McNemar test; normal for the average). The interval belongs to that test and takes as given how "
            "many answers changed. One of twenty comparisons falls below 0.05 by chance."
        )
        changed = flipped(before, after)
        with st.expander(f"The {len(changed)} documents whose answer changed between right and wrong"):
            st.dataframe(
                changed,
                hide_index=True,
                column_config={
                    "first": first,
                    "second": second,
                    "question": st.column_config.TextColumn(width="large"),
                },
            )
    else:
        st.info("These two were not evaluated on the same documents. Evaluate both with the same number of documents.")

st.subheader("All figures", anchor=False)
figures = runs_figures(flat)
number = st.column_config.NumberColumn(format="%.1f")
columns = {name: number for name in figures.columns if name not in ("experiment", "layers", "scored on")}
st.dataframe(figures, column_config={"run": st.column_config.Column(pinned=True), **columns})
st.caption("Click a column's head to sort or pin it; the magnifying glass finds a run.")
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
