"""Compare page: scores, perplexity, speed and size of any runs of any experiments, next to the original."""

import pandas as pd
import streamlit as st

from pages.shared.choices import check_address, named_choice
from pages.shared.filters import GROUPS, OWN, filtered, group_colours, group_of
from pages.shared.frame import command_line, require_experiment, shown_errors, start_page
from pages.shared.lost import show_lost
from pages.shared.navigation import next_step, set_address
from pages.shared.paired import show_paired
from pages.shared.plain import plain
from pages.shared.tables import aligned, comparison_table, unbroken
from pages.shared.verdict import judged_rows, show_measured, show_verdict
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
from swm.reporting.glossary import TERMS
from swm.reporting.headline import headline, leading
from swm.reporting.judged import judged, pin
from swm.reporting.names import row_name
from swm.reporting.numbers import MISSING
from swm.reporting.row import Row
from swm.reporting.seeds import over_seeds
from swm.workspace.experiments import list_experiments

MOST_SHOWN = 6  # models at first
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
    return f"On {', '.join(only)} the original is not above chance: changes there say little." if only else ""


def show_measurements() -> None:
    """Every figure of the models shown as one table, and of all runs as a file."""
    measurements = comparison_table(list(labels), flat, differing)
    measurements = measurements[(measurements != MISSING).any(axis=1)]
    if len(flat) > MOST_COLUMNS:
        table = measurements.T
        if by not in (OWN, "layers"):  # which is a column already
            table.insert(0, GROUPS[by].lower(), [group_of(row, by) for row in flat])
        models = st.column_config.Column("model", pinned=True, width=190)
        st.dataframe(table, height=TALL, column_config={"_index": models, **aligned(table)})
    else:
        st.table(unbroken(measurements))
    st.caption(
        "Brackets are 95 % intervals, over documents for scores and over segments of text for perplexity, and the "
        "range over repetitions for speed. Where the original was timed again beside a model, what it reached there "
        "follows; relative speeds are medians over turns, so they can differ a little from the quotient of two speeds."
    )


def show_accuracies() -> None:
    """Accuracy by task: bars, or a grid where there are many models."""
    if not scored:
        return
    st.subheader("Accuracy by task", anchor=False)
    if len(scored) > MOST_BARS:
        own = pinned == AUTOMATIC or not everything[pinned].scores
        references = (
            reference_rows(list(scored.values()), list(everything.values()))
            if own
            else [everything[pinned]] * len(scored)
        )
        st.plotly_chart(scores_grid(list(scored.values()), list(scored), references), key="compare_grid")
        base = "each model's control, or else its original" if own else pinned
        st.caption(
            f"Accuracy in percent. Colour: difference from {plain(base)}, blue higher, orange lower. Differences of a "
            f"few points are often within noise; the tables have the intervals. {guessed(scored)}"
        )
    else:
        st.plotly_chart(scores_chart(list(scored.values()), list(scored)), key="compare_scores")
        if note := guessed(scored):
            st.caption(note)


def chosen_models() -> tuple[dict[str, Row], dict[str, Row], str, str]:
    """The models shown and all models, by label; how they are grouped, and the model to compare all with."""
    flat = [row for name in experiments for row, _ in over_seeds(by_name[name], flat_rows(compare(by_name[name])))]
    several = len(experiments) > 1
    everything = {f"{row.experiment}: {row_name(row)}" if several else row_name(row): row for row in flat}
    usual = [list(everything)[place] for place in leading(flat, MOST_SHOWN)]
    if "compare_opened" not in st.session_state:
        check_address("runs", list(everything), "run")
    labels, by = everything, OWN
    with folded:
        if len(everything) > MANY:
            labels, by = filtered(labels, "compare")
        narrowed = len(labels) < len(everything)
        shown = st.multiselect(
            "Models",
            list(everything),
            default=selection("runs", list(everything), usual),
            key=f"compare_runs_{'_'.join(experiments)}",
            disabled=narrowed,
            help=f"At first the original, the best model with its control, and what loses least, {MOST_SHOWN} at "
            "most. A filter above shows all models that pass it.",
        )
        if st.session_state.get("compare_with") not in (None, AUTOMATIC, *everything):  # of another experiment
            del st.session_state["compare_with"]
        pinned = st.selectbox(
            "Compare all with",
            [AUTOMATIC, *everything],
            key="compare_with",
            bind="query-params",
            help="What the differences on this page are from. The verdict always compares with the run's control, or "
            "with the original if it has none.",
        )
    set_address(  # so that it can be shared
        experiments=experiments if experiments != [experiment.name] else [], runs=shown if shown != usual else []
    )
    st.session_state["compare_opened"] = True
    return {label: row for label, row in labels.items() if narrowed or label in shown}, everything, by, pinned


experiment = require_experiment(
    start_page("Compare", "The original and the merged models: what merging saves and what it costs.")
)
top = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
place, folded = top.container(width=360), top.popover("Models", icon=":material/tune:")
with shown_errors():
    by_name = {listed.name: listed for listed in list_experiments()[0]}
    if "compare_opened" not in st.session_state:
        check_address("experiments", list(by_name), "experiment")
    experiments = folded.multiselect(
        "Experiments",
        list(by_name),
        default=selection("experiments", list(by_name), [experiment.name]),
        key=f"compare_experiments_{experiment.name}",
        help="Choose several to compare their runs. Each run is compared with the original and the control of its own "
        "experiment.",
    )
    labels, everything, by, pinned = chosen_models()
    judged_shown = [row for name in experiments for row in judged_rows(by_name[name], list(labels.values()))]
    by_key = {row.key: row for row in judged_shown}
labels = {label: by_key[row.key] for label, row in labels.items()}
flat = list(labels.values())
if not any(row.scores or row.perplexities for row in flat):
    if not labels:
        st.info("No model is chosen. Choose some under “Models”.", icon=":material/tune:")
        st.stop()
    st.info("Nothing has been evaluated yet. Evaluate a run and the original.", icon=":material/science:")
    next_step("pages/run.py", "Evaluate a run")
    st.stop()

judged_label = place.selectbox(
    "Verdict on",
    list(labels),
    index=headline(flat, list(everything.values())),
    key=f"compare_verdict_{'_'.join(experiments)}",
    bind="query-params",
    help="The model that the sentence and the numbers below it describe.",
)
if len(labels) < len(everything):
    top.caption(f"{len(labels)} of {len(everything)} models are shown.")
if pinned != AUTOMATIC:
    with shown_errors():
        every = [row for name in experiments for row in flat_rows(compare(by_name[name]))]
        labels = dict(zip(labels, pin(flat, everything[pinned], every), strict=True))
        flat = list(labels.values())
scored = {label: row for label, row in labels.items() if row.scores}
with st.container(key="verdict"):
    show_verdict(labels[judged_label])
charted, excluded = comparable(scored)
timed = any(relative_speed(row) and row.average is not None for row in charted.values())
if timed:
    models = list(charted.values())
    groups = [group_of(row, by) for row in models] if by != OWN else []
    colours = group_colours(models, groups, by) if groups else []
    figure = score_against_speed(models, list(charted), groups, colours)
    with st.container(key="wrap_charts_verdict"):
        left, right = st.columns([6, 5], gap="large")
    left.plotly_chart(figure, key="compare_pareto", alt="Accuracy against speed, a point for each model.")
    with right:
        show_measured(labels[judged_label])
else:
    show_accuracies()
    show_measured(labels[judged_label])
if timed and excluded:
    st.caption(f"Not in the chart, because scored on other tasks or documents: {plain(', '.join(excluded))}.")

if costs := cost_lines(flat, pinned != AUTOMATIC):
    st.subheader("What merging cost", anchor=False, help=TERMS["control"])
    cost_table = pd.DataFrame(costs).set_index("run")
    cost_table = cost_table.loc[:, (cost_table != MISSING).any(axis=0)]
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
        f"{against} If an interval contains 0 (for perplexity 1), the difference is not significant: it may be none, "
        "or anything in the interval."
    )

show_lost(labels, judged_label)
with st.expander("All measurements"):
    differing = st.toggle(
        "Differences only",
        key="compare_differing",
        bind="query-params",
        help="Hides what is equal for all models shown.",
    )
    show_measurements()
st.download_button(
    "Download all runs as CSV",
    lambda: csv_text(judged([row for name in experiments for row in compare(by_name[name])])),
    f"{experiment.name}.csv",
    "text/csv",
    key="compare_csv",
    icon=":material/download:",
)
if not scored:
    st.info("None of these models has scores of tasks: only perplexity is compared.", icon=":material/science:")
    next_step("pages/run.py", "Evaluate a run")
    command_line("compare", experiment.name, "--json")
    st.stop()
if timed:
    show_accuracies()
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
    every = [row for name in experiments for row in flat_rows(compare(by_name[name])) if row.scores]
    show_paired(every, flat[headline(flat, list(everything.values()))], several=len(experiments) > 1)
next_step("pages/playground.py", "Try the models on a prompt")
command_line("compare", experiment.name, "--json")
