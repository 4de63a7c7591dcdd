"""Compare page: scores, perplexity, speed and size of any runs of any experiments, next to the original."""

import pandas as pd
import streamlit as st

from pages.shared.choices import check_address, named_choice
from pages.shared.filters import GROUPS, OWN, filtered, group_colours, group_of
from pages.shared.frame import command_line, require_experiment, shown_errors, start_page
from pages.shared.navigation import next_step, set_address
from pages.shared.paired import show_paired
from pages.shared.plain import plain
from pages.shared.tables import aligned, comparison_table, runs_figures, unbroken
from pages.shared.verdict import judged_rows, show_verdict
from swm.reporting.compare import comparable, compare, flat_rows, reference_rows
from swm.reporting.compare_charts import (
    MOST_BARS,
    parallel_chart,
    relative_speed,
    score_against_speed,
    scores_chart,
    scores_grid,
)
from swm.reporting.figures import cost_lines, csv_text
from swm.reporting.figures import figures as figures_of
from swm.reporting.glossary import TERMS
from swm.reporting.headline import headline
from swm.reporting.judged import judged, pin
from swm.reporting.names import row_name
from swm.reporting.row import Row
from swm.workspace.experiments import list_experiments

MOST_COLUMNS = 8  # more models than this are the lines of a table, not its columns
TALL = 560  # pixels of a table with many models
MANY = 12  # from this many models on, filters are offered
AUTOMATIC = "Control and original of each run"


def selection(name: str, options: list[str], default: list[str]) -> list[str]:
    """The options that the address names, when the page is first opened; after that the default."""
    if "compare_opened" in st.session_state:
        return default
    return [value for value in st.query_params.get_all(name) if value in options] or default


def guessed(scored: dict[str, Row]) -> str:
    """A note on the tasks that the originals cannot do better than by guessing."""
    rows = scored.values()
    tasks = dict.fromkeys(task for row in rows if row.tasks_above_chance for task in row.scores)
    only = [task for task in tasks if not any(task in row.tasks_above_chance for row in rows)]
    return f" On {', '.join(only)} the original is not above chance: changes there say little." if only else ""


def show_numbers() -> None:
    """All numbers as one table and file, and the command that gives them."""
    st.subheader("All numbers", anchor=False)
    figures = runs_figures(flat)
    digits = {"average, low": 1, "average, high": 1} | {figure.title: figure.digits for figure in figures_of(flat)}
    columns = {name: st.column_config.NumberColumn(format=f"%.{digits[name]}f") for name in figures if name in digits}
    st.dataframe(figures, column_config={"run": st.column_config.Column(pinned=True), **columns}, placeholder="–")
    st.caption("Click a column header to sort or pin it. Use the magnifying glass to find a run.")
    st.download_button(
        "Download as CSV",
        lambda: csv_text(judged(rows)),
        f"{experiment.name}.csv",
        "text/csv",
        key="compare_csv",
        icon=":material/download:",
    )
    command_line("compare", experiment.name, "--json")
    next_step("pages/playground.py", "Try the models on a prompt")


experiment = require_experiment(
    start_page("Compare", "The original and the merged models: what merging saves and what it costs.")
)

with shown_errors():
    by_name = {listed.name: listed for listed in list_experiments()[0]}
    if "compare_opened" not in st.session_state:
        check_address("experiments", list(by_name), "experiment")
    chosen = st.columns([1, 2], gap="large")
    experiments = chosen[0].multiselect(
        "Experiments",
        list(by_name),
        default=selection("experiments", list(by_name), [experiment.name]),
        key=f"compare_experiments_{experiment.name}",
        help="Choose several to compare their runs. Each run is compared with the original and the control of its own "
        "experiment.",
    )
    rows = [row for name in experiments for row in compare(by_name[name])]
flat = flat_rows(rows)
several = len(experiments) > 1
labels = {f"{row.experiment}: {row_name(row)}" if several else row_name(row): row for row in flat}
if "compare_opened" not in st.session_state:
    check_address("runs", list(labels), "run")
shown = chosen[1].multiselect(
    "Runs",
    list(labels),
    default=selection("runs", list(labels), list(labels)),
    key=f"compare_runs_{'_'.join(experiments)}",
    help="The runs to show on this page.",
)
set_address(  # so that it can be shared
    experiments=experiments if experiments != [experiment.name] else [], runs=shown if shown != list(labels) else []
)
st.session_state["compare_opened"] = True
everything, labels = labels, {label: row for label, row in labels.items() if label in shown}
by = OWN
if len(everything) > MANY:
    labels, by = filtered(labels, "compare")
with shown_errors():
    judged_shown = [row for name in experiments for row in judged_rows(by_name[name], list(labels.values()))]
    by_key = {row.key: row for row in judged_shown}
labels = {label: by_key[row.key] for label, row in labels.items()}
flat = list(labels.values())
if not any(row.scores or row.perplexities for row in flat):
    message = "Nothing has been evaluated yet. Evaluate a run and the original." if shown else "Choose a run."
    st.info(message, icon=":material/science:")
    next_step("pages/run.py", "Evaluate a run")
    st.stop()

ends = st.columns(2, gap="large")
judged_label = ends[0].selectbox(
    "Verdict on",
    list(labels),
    index=headline(flat, list(everything.values())),
    key=f"compare_verdict_{'_'.join(experiments)}",
    bind="query-params",
    help="The run that the sentence and the numbers below it describe.",
)
if st.session_state.get("compare_with") not in (None, AUTOMATIC, *everything):  # of another experiment
    del st.session_state["compare_with"]
pinned = ends[1].selectbox(
    "Compare all with",
    [AUTOMATIC, *everything],
    key="compare_with",
    bind="query-params",
    help="What the differences on this page are from. The verdict always compares with the run's control, or with the "
    "original if it has none.",
)
if pinned != AUTOMATIC:
    with shown_errors():
        labels = dict(zip(labels, pin(flat, everything[pinned]), strict=True))
        flat = list(labels.values())
with st.container(key="verdict"):
    show_verdict(labels[judged_label])

if costs := cost_lines(flat, pinned != AUTOMATIC):
    st.subheader("What merging cost", anchor=False, help=TERMS["control"])
    cost_table = pd.DataFrame(costs).set_index("run")
    if len(costs) > MANY:
        pinned_run = st.column_config.Column(pinned=True)
        st.dataframe(cost_table, height=TALL, column_config={"run": pinned_run, **aligned(cost_table)})
    else:
        st.table(unbroken(cost_table))
    against = (
        "Each run against its control, if it was healed and has one, and against the original, where the training's "
        "own effect counts as well."
        if pinned == AUTOMATIC
        else f"Each model against {plain(pinned)}."
    )
    st.caption(
        f"{against} Brackets are 95 % intervals over the same documents or segments of text. If an interval contains "
        "0 (for perplexity 1), the difference is not significant: it may be none, or anything in the interval."
    )

st.subheader("All measurements", anchor=False)
differing = st.toggle(
    "Differences only",
    key="compare_differing",
    bind="query-params",
    help="Hides what is equal for all models shown.",
)
measurements = comparison_table(list(labels), flat, differing)
if len(flat) > MOST_COLUMNS:
    table = measurements.T
    if by not in (OWN, "layers"):  # which is a column already
        table.insert(0, GROUPS[by].lower(), [group_of(row, by) for row in flat])
    models = st.column_config.Column("model", pinned=True, width=190)
    st.dataframe(table, height=TALL, column_config={"_index": models, **aligned(table)})
else:
    st.table(unbroken(measurements))
st.caption(
    "Brackets are 95 % intervals, over documents for scores and over segments of text for perplexity, and the range "
    "over repetitions for speed. Where the original was timed again beside a model, what it reached there follows; "
    "relative speeds are medians over turns, so they can differ a little from the quotient of two speeds."
)
scored = {label: row for label, row in labels.items() if row.scores}
if not scored:
    st.info("None of these models has scores of tasks: only perplexity is compared.", icon=":material/science:")
    show_numbers()
    next_step("pages/run.py", "Evaluate a run")
    st.stop()
many = len(scored) > MOST_BARS
with st.container(key="wrap_charts_scores"):
    left, right = (st.container(), st.container()) if many else st.columns(2, gap="large")
with left:
    st.subheader("Accuracy by task", anchor=False)
    if many:
        own = pinned == AUTOMATIC or not everything[pinned].scores
        references = reference_rows(list(scored.values()), rows) if own else [everything[pinned]] * len(scored)
        st.plotly_chart(scores_grid(list(scored.values()), list(scored), references), key="compare_grid")
        base = "each model's control, or else its original" if own else pinned
        st.caption(
            f"Accuracy in percent. Colour: difference from {plain(base)}, blue higher, orange lower. Differences of a "
            f"few points are often within noise; the tables have the intervals.{guessed(scored)}"
        )
    else:
        st.plotly_chart(scores_chart(list(scored.values()), list(scored)), key="compare_scores")
with right:
    st.subheader("Score against speed", anchor=False)
    charted, excluded = comparable(scored)
    if any(relative_speed(row) and row.average is not None for row in charted.values()):
        models = list(charted.values())
        groups = [group_of(row, by) for row in models] if by != OWN else []
        colours = group_colours(models, groups, by) if groups else []
        st.plotly_chart(score_against_speed(models, list(charted), groups, colours), key="compare_pareto")
    else:
        st.caption("No speed has been measured yet. Click “Measure speed” on the Run page.")
    if excluded:
        st.caption(f"Not in the chart, because scored on other tasks or documents: {plain(', '.join(excluded))}.")

if len(scored) > 2:
    title = "Trade-offs: all models on all axes (parallel coordinates)"
    tradeoffs = st.expander(title, key="compare_tradeoffs", on_change="rerun", bind="query-params")
    if tradeoffs.open:  # drawing it takes a second where there is no GPU
        with tradeoffs:
            if len(everything) <= MANY:
                by = named_choice(st.segmented_control, "Colours", GROUPS, "compare_colours", required=True)
            groups = [label if by == OWN else group_of(row, by) for label, row in scored.items()]
            colours = group_colours(list(scored.values()), groups, by)
            lines, without = parallel_chart(list(scored.values()), list(scored), groups, colours)
            st.plotly_chart(lines, key="compare_parallel")
            st.caption(
                "Each line is a model; up is better on every axis. Drag along an axis to keep the models that cross "
                "that part, click it to keep all again; drag an axis title to move the axis. Perplexities above 20 "
                "times the lowest are drawn as that."
                + (f" Not drawn, because a number is missing: {plain(', '.join(without))}." if without else "")
            )

if len(scored) > 1:
    show_paired(scored, list(everything.values()))
show_numbers()
