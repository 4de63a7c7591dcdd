"""Studies page: every method at several depths, on the experiment's own model."""

from pathlib import Path
from typing import Any

import streamlit as st

from pages.shared.frame import (
    caption,
    command_line,
    duration,
    job_panel,
    next_step,
    plain,
    require_experiment,
    shown_errors,
    start_page,
)
from pages.shared.tables import study_table
from swm.jobs.child import start
from swm.reporting.charts import similarity_heatmap
from swm.reporting.csv_table import csv_text
from swm.reporting.study_charts import depths_chart, staircase_chart, threshold_scores_chart
from swm.reporting.table import conditions_of
from swm.search.kept_path import kept_path
from swm.similarity.measure import Measure
from swm.studies.grids import KINDS, OF_RUNS, Grid, ThresholdGrid, grid_of, grid_text, grid_yaml
from swm.studies.rows import study_rows
from swm.studies.times import study_seconds
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE

NAMES = {
    "methods": "Methods",
    "healing": "Healing",
    "width": "Depth and width",
    "thresholds": "Thresholds",
    "texts": "Task texts",
}
SHIPPED_STUDY = "study"
FIGURES = {
    "lambada": "Perplexity, LAMBADA (novels)",
    "squad": "Perplexity, SQuAD (Wikipedia)",
    "average": "Average score",
}


@st.cache_data(max_entries=8, show_spinner=False)
def rows_once(folder: str, changed: list[tuple[str, int]], against: str | None) -> list[dict[str, Any]]:
    """As `study_rows`, once for each time a run's files were written: checking all answers takes most of a second."""
    return study_rows(Experiment(Path(folder)), against)


def rows_of(experiment: Experiment, runs: set[str], against: str | None = None) -> list[dict[str, Any]]:
    rows = rows_once(str(experiment.folder), experiment.results_changed(), against)
    return [row for row in rows if runs & {*row["runs"]}]


def show_runs(experiment: Experiment, kind: str, grid: Grid) -> None:
    """Every method against depth, and the same as a table."""
    names = {BASELINE, *(cell.run for cell in grid.cells(experiment.layer_count))}
    rows = rows_of(experiment, names)
    measured = [name for name in FIGURES if any(name in row["perplexities"] or name == "average" for row in rows)]
    if len(rows) < 2 or not any(row["perplexities"] for row in rows):
        st.info("Nothing of this study has been measured yet.", icon=":material/science:")
        if experiment.name != SHIPPED_STUDY:
            st.page_link(
                "pages/studies.py",
                label="See the results on SmolLM2-135M that ship with the program",
                query_params={"experiment": SHIPPED_STUDY},
            )
        return
    figure_of = st.segmented_control(
        "Figure", measured, format_func=FIGURES.get, default=measured[0], required=True, key="studies_figure"
    )
    st.plotly_chart(depths_chart(rows, figure_of), key="studies_chart")
    speed = " Speed is measured once for each number of layers and parameters, in turn with the original."
    st.caption(
        "Bars: the 95 % interval over texts (perplexity), one standard error over documents (score). Dotted: after "
        "LoRA. A method that finds no plan of that depth has no point; perplexities above 20 times the original's are "
        f"in the table alone.{speed if any(row['latency_ms'] for row in rows) else ''}{seeds_told(rows)}"
    )
    scored = list(dict.fromkeys(row["method"] for row in rows if row["scores"] and row["method"] != "original"))
    if len(scored) > 1:
        against = st.selectbox(
            "Average against",
            sorted(scored, key=lambda method: method != "best"),
            key=f"studies_against_{experiment.name}_{kind}",
            width=240,
            help="The table then says how far each average is from this method's at equal size and stage: the mean of "
            "the same documents' differences, with its 95 % interval. If the interval "
            "contains 0, the difference is not significant.",
        )
        rows = rows_of(experiment, names, against)
    st.dataframe(study_table(rows), hide_index=True, column_config={"method": st.column_config.Column(width=115)})
    if measured_with := conditions_of(rows):
        st.caption(plain(measured_with))
    st.download_button(
        "Download as CSV", lambda: csv_text(rows), f"{experiment.name}-study.csv", "text/csv", key="studies_csv"
    )


def seeds_told(rows: list[dict[str, Any]]) -> str:
    """What the intervals of healed models say of the training's own chance."""
    healed = [len(row["seeds"]) for row in rows if row["stage"] == "recovered"]
    if not healed:
        return ""
    if min(healed) > 1:
        return " Healed models: means over seeds, whose spread is in the interval too."
    return (
        " Healed with one seed, a model's interval leaves out the chance of the training itself; `seeds` in the grid "
        "heals with several."
    )


def show_thresholds(experiment: Experiment, grid: ThresholdGrid, scores: list[dict[str, Any]]) -> None:
    paths = [path for rule in grid.rules if (path := kept_path(experiment, rule))]
    if not paths:
        st.info("No threshold path has been searched yet.", icon=":material/science:")
        return
    st.plotly_chart(staircase_chart(paths, "layers", grid.scored_at), key="studies_layers")
    st.plotly_chart(staircase_chart(paths, "perplexity", grid.scored_at), key="studies_perplexity")
    if partly := [f"{path.rule} ({path.covered():.0%})" for path in paths if path.covered() < 0.999]:
        st.caption(f"Not computed in whole: {', '.join(partly)}. Where a line is broken the plan is not known.")
    st.caption(
        "The same threshold leaves different depths with different rules; compare rules at equal depth. Perplexity of "
        "rule fit is that of its quick fit while searching."
    )
    if scores:
        st.plotly_chart(threshold_scores_chart(scores), key="studies_scores")
        documents = " or ".join(dict.fromkeys(f"{row['documents']:,}" for row in scores))
        st.caption(f"Bars: one standard error over {documents} documents. No training; point at a dot for its layers.")


def show_texts(experiment: Experiment, metric: str, texts: list[str]) -> None:
    maps = {text: data for text in texts if (data := experiment.similarity(Measure(metric, texts=text).name))}
    if not maps:
        st.info("No heat map of a task's prompts has been measured yet.", icon=":material/science:")
        return
    columns = [column for _ in range(0, len(maps), 3) for column in st.columns(3, gap="medium")]
    for (text, data), column in zip(maps.items(), columns, strict=False):
        column.plotly_chart(similarity_heatmap(data["matrix"], text), key=f"studies_{text}")


experiment = require_experiment(
    start_page("Studies", "Every method at several depths, before and after healing, on this model.")
)
caption(experiment)
kind = st.segmented_control(
    "Study",
    list(KINDS),
    format_func=NAMES.get,
    default="methods",
    required=True,
    key="studies_kind",
    bind="query-params",
    persist_state="session",
)
st.caption(KINDS[kind])
with shown_errors():
    last = experiment.study(kind)
    grid = grid_of(experiment, kind)
    if kind in OF_RUNS:
        show_runs(experiment, kind, Grid(**grid))
    elif kind == "thresholds":
        asked = ThresholdGrid(**grid)
        show_thresholds(experiment, asked, asked.scores_in((last or {}).get("scores", [])))
    else:
        show_texts(experiment, grid["metric"], grid["texts"])
    for cell, reason in (last or {"failed": {}})["failed"].items():
        st.caption(plain(f"{cell}: {reason}"))

with st.expander("What it runs"):
    st.code(grid_yaml(kind, grid) if last else grid_text(kind), language="yaml")
    st.caption(
        "Another grid: copy assets/studies.yaml, change it, and name the copy with --grid; later passes go on with it. "
        "Each cell is a run of this experiment, and what is there is not computed again."
    )
if kind in OF_RUNS:
    seconds = study_seconds(experiment.model_facts, experiment.cost(), Grid(**grid), experiment.folder)
    if seconds:
        st.caption(f"About {duration(seconds)} in all when nothing is there yet, and the methods' own searches.")
arguments = ["study", experiment.name, kind]
if not experiment.state().active and st.button(
    "Go on with this study" if last else "Run this study",
    type="primary",
    disabled=experiment.read_only,
    key="studies_start",
):
    start(experiment, "study", arguments)
    st.rerun()
job_panel(experiment)
command_line(*arguments)
next_step("pages/compare.py", "Compare single runs, with paired tests")
