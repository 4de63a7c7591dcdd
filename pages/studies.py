"""Studies page: every method at several depths, on the experiment's model."""

from pathlib import Path
from typing import Any

import streamlit as st

from pages.shared.choices import STUDY, named_choice
from pages.shared.frame import (
    command_line,
    job_panel,
    require_experiment,
    shown_errors,
    start_button,
    start_page,
)
from pages.shared.navigation import next_step
from pages.shared.plain import plain
from pages.shared.tables import decided_table, show_table, study_table, survival_table, windows_text
from swm.evaluation.paired import ACCURACY, CHOICE_LOGPROB, SCORES
from swm.registry import METRICS
from swm.reporting.ability_charts import profiles_heatmap
from swm.reporting.figures import conditions_of, csv_text
from swm.reporting.glossary import TERMS, TITLES, help_for, method_name
from swm.reporting.heatmaps import similarity_heatmap
from swm.reporting.names import row_name, text_name
from swm.reporting.row import Row
from swm.reporting.study_charts import depths_chart, ranks_chart, staircase_chart, threshold_scores_chart
from swm.search.kept_path import kept_path
from swm.settings import SKIPPED_TOKENS
from swm.similarity.measure import Measure
from swm.studies.abilities import abilities_conclusion, profiles_csv, profiles_of
from swm.studies.findings import conclusion, pairs_decided, threshold_conclusion
from swm.studies.grid_files import grid_of, grid_text, grid_yaml
from swm.studies.grids import KINDS, OF_RUNS, Grid, ThresholdGrid, cells_of, parsed_grid
from swm.studies.rows import study_rows
from swm.studies.times import whole_study_seconds
from swm.workspace.estimate import about
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE

NAMES = {
    "methods": "Methods",
    "healing": "Healing",
    "abilities": "Abilities",
    "width": "Depth and width",
    "thresholds": "Thresholds",
    "texts": "Task prompts",
}
KIND_HELP = "\n\n".join(f"**{NAMES[kind]}.** {text}" for kind, text in KINDS.items())
EXAMPLES = dict.fromkeys(("methods", "thresholds", "texts"), "example-study") | {"healing": "example-healing"}
MEAN = "Mean"
FIGURES = {
    "lambada": "Perplexity, LAMBADA (novels)",
    "squad": "Perplexity, SQuAD (Wikipedia)",
    "choice_logprob": TITLES["choice_logprob"],
    "accuracy": TITLES["accuracy"],
    "bits_per_byte": TITLES["bits_per_byte"],
}


@st.cache_data(max_entries=8, show_spinner=False)
def cached_rows(folder: str, changed: list[tuple[str, int]], against: str | None) -> list[dict[str, Any]]:
    """The rows of `study_rows`, cached until a run's files change: checking all answers takes most of a second."""
    return study_rows(Experiment(Path(folder)), against)


@st.cache_data(max_entries=8, show_spinner=False)
def cached_pairs(folder: str, changed: list[tuple[str, int]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of `pairs_decided`, cached until a run's files change."""
    return pairs_decided(Experiment(Path(folder)), {*names})


def rows_of(experiment: Experiment, runs: set[str], against: str | None = None) -> list[dict[str, Any]]:
    """The rows that are of any of these runs."""
    rows = cached_rows(str(experiment.folder), experiment.results_changed(), against)
    return [row for row in rows if runs & {*row.runs}]


def _of_calibration(experiment: Experiment, figure: str) -> str:
    """A note where a perplexity is of the kind of text that layers were chosen and fitted on."""
    return " Layers were chosen on text of this kind (other documents)." if figure == experiment.settings.texts else ""


def show_runs(experiment: Experiment, kind: str, grid: Grid, place: Any) -> bool:
    """A chart of every method against depth, and the same numbers as a table; False if nothing was measured yet.

    Args:
        place: where the choice of the figure goes.
    """
    names = {BASELINE, *(cell.run for cell in cells_of(experiment, kind, grid))}
    rows = rows_of(experiment, names)
    measured = [name for name in FIGURES if any(_has(row, name) for row in rows)]
    healed = any(row.stage == "recovered" for row in rows)
    if len(rows) < 2 or not any(row.perplexities for row in rows) or (grid.heal and not healed):
        return False
    figure_of = place.segmented_control(
        "Show",
        measured,
        format_func=FIGURES.get,
        default=next((name for name in measured if name != experiment.settings.texts), measured[0]),
        required=True,
        key="studies_figure",
        bind="query-params",
        help=help_for("perplexity", *SCORES),
    )
    said = conclusion(rows, figure_of)
    if said:
        st.markdown(f"**{plain(said)}**")
    st.plotly_chart(
        depths_chart(rows, figure_of), key="studies_chart", alt=said or "A line over depths for each method."
    )
    speed = " Speed is measured once for each combination of layer and parameter count, in turn with the original."
    st.caption(
        f"Error bars: 95 % intervals over texts or documents.{_of_calibration(experiment, figure_of)}"
        f"{' Dotted lines: after LoRA.' if healed else ''} In colour: the five methods of the best mean rank, and the "
        "paper's; hover over a grey line for its name. A method that finds no plan of some depth has no point there. "
        "Perplexities above 20 times the original's are only in the table."
        f"{speed if any(row.latency_ms for row in rows) else ''}{seeds_note(rows)}"
    )
    numbers = st.expander("All numbers")
    with numbers:
        against = _chosen_method(rows, f"studies_against_{experiment.name}_{kind}")
    if against not in {None, *(row.against_method for row in rows)}:
        rows = rows_of(experiment, names, against)
    with numbers:
        show_table(study_table(rows), method=st.column_config.Column(width=215))
        st.markdown("\n\n".join(f"**{plain(row_name(row))}** · {plain(str(row.verdict))}" for row in rows))
        if conditions := conditions_of(rows):
            st.caption(plain(conditions))
    show_findings(experiment, rows, names)
    st.download_button(
        "Download as CSV",
        csv_text(rows),
        f"{experiment.name}-study.csv",
        "text/csv",
        on_click="ignore",
        key="studies_csv",
    )
    return True


def show_profiles(experiment: Experiment, kind: str, grid: Grid) -> bool:
    """What each method keeps and gives up, if the study asks for abilities; False if none was measured yet."""
    runs = {cell.run for cell in cells_of(experiment, kind, grid)} if grid.abilities else ()
    profiles = profiles_of(experiment, runs)
    if not profiles:
        return False
    st.subheader("What each method keeps and gives up", anchor=False)
    said = abilities_conclusion(profiles)
    if said:
        st.markdown(f"**{plain(said)}**")
    several = len({each.row.layers for each in profiles if not each.row.control}) > 1
    shown = {
        f"{each.name} · {each.row.layers} layers" if several and not each.row.control else each.name: {
            MEAN: each.mean,
            **each.rises,
        }
        for each in profiles
    }
    st.plotly_chart(profiles_heatmap(shown, MEAN), key="studies_profiles", alt=said or "Rises by method and ability.")
    st.caption(
        "How many percent more bits per byte of the right answer than the original model, for each ability; the mean "
        "weighs all abilities alike. Pale: the 95 % interval over requests contains 0. Hover over a cell for the "
        "interval.",
        help=TERMS["bits_per_byte"],
    )
    st.download_button(
        "Download abilities as CSV",
        profiles_csv(profiles),
        f"{experiment.name}-study-abilities.csv",
        "text/csv",
        on_click="ignore",
        key="studies_profiles_csv",
    )
    return True


def _chosen_method(rows: list[Row], key: str) -> str | None:
    """The method to compare the others with; None if there are no two."""
    judged = [row.method for row in rows if row.scores and not row.control]
    methods = dict.fromkeys(name for name in judged if name and name != "original")
    if len(methods) < 2:
        return None
    return st.selectbox(
        "Compare averages with",
        sorted(methods, key=lambda method: method != "best"),
        format_func=method_name,
        key=key,
        bind="query-params",
        width=240,
        help="The table shows how far each average is from this method's at the same size and stage: the mean "
        "difference over the same documents, with its 95 % interval. If the interval contains 0, the difference is "
        "not significant.",
    )


def _has(row: Row, figure_of: str) -> bool:
    return row.average is not None if figure_of == ACCURACY else figure_of in (*row.averages, *row.perplexities)


def show_findings(experiment: Experiment, rows: list[Row], names: set[str]) -> None:
    """Whether the better start survives healing, and which scores can tell the methods apart."""
    survival = survival_table(rows)
    if not survival.empty:
        st.subheader(
            f"Do differences between methods survive healing? Every method against {rows_method(rows)}", anchor=False
        )
        show_table(survival)
        show_same_windows(rows)
        score = CHOICE_LOGPROB if any(row.averages.get(CHOICE_LOGPROB) for row in rows) else ACCURACY
        if ranks := ranks_chart(rows, score):
            st.plotly_chart(ranks, key="studies_ranks")
            st.caption(f"Rank by {TITLES[score].lower()}, averaged over tasks. Neighbouring ranks can be within noise.")
        st.caption(
            "Differences of the average choice log-probability in nats (above 0: surer of the right answer than "
            f"{rows_method(rows)}), and ratios of perplexity. Brackets: 95 % intervals over documents or segments of "
            "text, and after healing with several seeds, over the seeds as well (Student's, on each seed's "
            "difference). If an interval contains 0 (for perplexity 1), the difference is not significant.",
            help=TERMS["choice_logprob"],
        )
    decided = cached_pairs(str(experiment.folder), experiment.results_changed(), tuple(sorted(names)))
    if decided:
        st.subheader("Which scores tell these methods apart?", anchor=False)
        show_table(decided_table(decided))
        st.caption(
            "Pairs of methods at the same depth whose perplexity intervals do not overlap, and how many of them each "
            "score decides: the 95 % interval of the paired difference leaves out 0. In brackets: those decided in "
            "favour of the method with the higher perplexity."
        )


def show_same_windows(rows: list[Row]) -> None:
    """Which healed models merge the same layers, so that their difference says nothing about the choice of layers."""
    methods: dict[str, list[str]] = {}
    for row in rows:
        if row.stage == "recovered" and not row.control:
            methods.setdefault(windows_text(row), []).append(method_name(row.method))
    same = [f"{' and '.join(names)} merge {windows}" for windows, names in methods.items() if len(names) > 1]
    if same:
        st.caption(
            f"The same layers: {'; '.join(same)}. Before healing these models differ in the merge rule alone; where "
            "healing fits merged layers first, methods that drop layers end with the same model."
        )


def rows_method(rows: list[Row]) -> str:
    """The method that the rows are compared with."""
    return method_name(next((row.against_method for row in rows if row.against and row.against_method), ""))


def seeds_note(rows: list[Row]) -> str:
    """Whether the intervals of healed models include the randomness of training."""
    seed_counts = [len(row.seeds) for row in rows if row.stage == "recovered"]
    if not seed_counts:
        return ""
    if min(seed_counts) > 1:
        return " Healed models: means over seeds; the intervals include the variation between seeds."
    return (
        " Models healed with a single seed: the interval does not include the variation between training runs. Set "
        "`seeds` in the grid to heal with several."
    )


def show_thresholds(experiment: Experiment, grid: ThresholdGrid, scores: list[dict[str, Any]]) -> bool:
    """Charts of layers, perplexity and score against threshold, one line for each rule; False if there is no path."""
    paths = [path for rule in grid.rules if (path := kept_path(experiment, rule))]
    if not paths:
        return False
    st.plotly_chart(staircase_chart(paths, "layers", grid.scored_at), key="studies_layers")
    st.plotly_chart(
        staircase_chart(paths, "perplexity", grid.scored_at, text_name(experiment.settings.texts)),
        key="studies_perplexity",
    )
    if partial := [
        f"{method_name(path.rule)}, {100 * path.covered():.0f} %" for path in paths if path.covered() < 0.999
    ]:
        st.caption(f"Partly computed: {'; '.join(partial)}. A line has gaps where the plan is not known.")
    st.caption(
        "The same threshold gives different depths with different rules, so compare rules at equal depth. Perplexities "
        "of rules fit and scale are those of the quick repair used while searching; above 20 times the original's they "
        "are not drawn."
    )
    if scores:
        st.markdown(f"**{threshold_conclusion(scores)}**")
        st.plotly_chart(threshold_scores_chart(scores), key="studies_scores")
        documents = " or ".join(dict.fromkeys(f"{row['documents']:,}" for row in scores))
        st.caption(
            f"Error bars: 95 % intervals over {documents} documents. The models are not healed. Hover over a point to "
            "see its number of layers."
        )
    return True


def show_texts(experiment: Experiment, metric: str, texts: list[str]) -> bool:
    """A heat map for the calibration text and each task's prompts, all with the same tokens left out; False if none."""
    for skip in (SKIPPED_TOKENS, 0):
        measures = {text: Measure(metric, skip_tokens=skip, texts=text).name for text in ["", *texts]}
        maps = {text: data for text, name in measures.items() if (data := experiment.similarity(name))}
        if any(maps):
            break
    else:
        return False
    columns = [column for _ in range(0, len(maps), 4) for column in st.columns(4, gap="small")]
    for (text, data), column in zip(maps.items(), columns, strict=False):
        title = text.removeprefix("task:") or "calibration text"
        column.plotly_chart(similarity_heatmap(data["matrix"], title, small=True, title=title), key=f"studies_{text}")
    left_out = f"The first {skip} tokens of each text are left out." if skip else "All tokens count."
    st.caption(f"{METRICS[metric].title} from 0 (dark) to 1 (bright), layer 0 in the lower left corner. {left_out}")
    return True


def offer(kind: str, grid: dict[str, Any], again: bool) -> None:
    """How long the study takes, and the button that runs it."""
    facts, cost, tokens = experiment.model_facts, experiment.cost(), experiment.settings.token_count
    seconds, missing = whole_study_seconds(facts, cost, parsed_grid(kind, grid), experiment.folder, tokens)
    more = f", not counting {', '.join(missing)}" if missing else ""
    st.caption(f"Takes {about(seconds)} from scratch{more}." if seconds else "")
    if not experiment.state().active:
        command, label = ["study", experiment.name, kind], "Resume this study" if again else "Run this study"
        start_button(label, experiment, "study", command, "studies_start")
    job_panel(experiment)


experiment = require_experiment(
    start_page("Studies", "Compare every method at several depths on this model, before and after healing.")
)
made = next((kind for kind in KINDS if experiment.changed(f"studies/{kind}.json")), "")
top = st.container(horizontal=True, vertical_alignment="bottom", gap="medium")
kind = named_choice(
    top.segmented_control, "Study", {kind: NAMES[kind] for kind in KINDS}, STUDY, made, required=True, help=KIND_HELP
)
with shown_errors():
    last = experiment.study(kind)
    grid = grid_of(experiment, kind)
    if kind in OF_RUNS:
        profiled = show_profiles(experiment, kind, Grid(**grid))
        shown = show_runs(experiment, kind, Grid(**grid), st if profiled else top) or profiled
    elif kind == "thresholds":
        thresholds = ThresholdGrid(**grid)
        shown = show_thresholds(experiment, thresholds, thresholds.scores_in((last or {}).get("scores", [])))
    else:
        shown = show_texts(experiment, grid["metric"], grid["texts"])
    if not shown:
        st.info("This study has no results yet.", icon=":material/science:")
        if not experiment.read_only:
            offer(kind, grid, bool(last))
        if example := EXAMPLES.get(kind):
            st.page_link(
                "pages/studies.py",
                label="See the example results on SmolLM2-135M",
                query_params={"experiment": example, "studies_kind": kind},
            )
    for cell, reason in (last or {"failed": {}})["failed"].items():
        st.caption(plain(f"{cell}: {reason}"))

with st.expander("What this study runs"):
    st.code(grid_yaml(kind, grid) if last else grid_text(kind), language="yaml")
    st.caption(
        "To use another grid, edit a copy of assets/studies.yaml and pass it with --grid; later runs of the study "
        "reuse it. Each cell is a run of this experiment. Existing results are not computed again."
    )
if shown and not experiment.read_only:
    offer(kind, grid, bool(last))
command_line("study", experiment.name, kind)
next_step("pages/compare.py", "Compare individual runs with paired tests")
