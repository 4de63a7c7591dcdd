"""One self-contained HTML page for stakeholders."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from swm import __version__
from swm.disk.files import disk_errors, replace_file
from swm.errors import ExperimentError, printable
from swm.evaluation.paired import ACCURACY, CHOICE_LOGPROB, paired
from swm.reporting.charts import loss_chart
from swm.reporting.commands import commands
from swm.reporting.compare import compare, documents_of, flat_rows, reference_rows
from swm.reporting.compare_charts import MOST_BARS, differences_chart, scores_chart, scores_grid
from swm.reporting.figures import cost_lines, lines
from swm.reporting.glossary import TERMS, TITLES
from swm.reporting.headline import headline
from swm.reporting.heatmaps import similarity_heatmap
from swm.reporting.html import figure_html, template_environment
from swm.reporting.judged import judged
from swm.reporting.key_figures import key_figures, timed_in
from swm.reporting.names import row_name
from swm.reporting.preview import plan_view
from swm.reporting.row import Row
from swm.reporting.verdict import in_short
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE, Run
from swm.workspace.units import gib

MOST_COLUMNS = 8  # more models than this are the lines of the table, not its columns
MANY = 12  # with more models, only the one that the report leads with has charts of its differences
Charts = tuple[str, list[go.Figure]]  # a title, and the figures below it, side by side


def write_report(experiment: Experiment, file: Path) -> None:
    """Write the report, which opens offline.

    Raises:
        ExperimentError: if the file cannot be written.
    """
    with disk_errors(file, 0):
        file = file.absolute().resolve()
        special = file.exists() and not file.is_file()
    if special:
        raise ExperimentError(
            f"{file} exists and is not a regular file, so it is not overwritten. Name a file, such as report.html."
        )
    replace_file(file, report_html(experiment).encode())


def report_html(experiment: Experiment, charts: bool = True) -> str:
    """The report as HTML: results before and after, plans, similarity, scores, caveats, commands.

    Args:
        charts: with charts, which take plotly's script with them, five megabytes.
    """
    flat = flat_rows(judged(compare(experiment)))
    runs = [run for run in experiment.runs() if not run.is_baseline]
    return (
        template_environment()
        .get_template("report.html")
        .render(
            experiment=experiment,
            settings=experiment.settings,
            facts=experiment.model_facts,
            slide=_slide(experiment, flat),
            verdicts=[(row_name(row), str(row.verdict)) for row in flat if row.stage != "original"],
            costs_of_merging=cost_lines(flat),
            terms=[(TITLES[name], text) for name, text in TERMS.items()],
            names=[row_name(row) for row in flat],
            lines=lines(flat),
            many=len(flat) > MOST_COLUMNS,
            plans=[
                (run.name, run.source, plan_view(run.plan, experiment.model_facts))
                for run in runs
                if not run.merges_nothing
            ],
            charts=[
                (title, [figure_html(figure, first=place == n == 0) for n, figure in enumerate(figures)])
                for place, (title, figures) in enumerate(_charts(experiment, flat) if charts else [])
            ],
            costs=[(run.name, cost) for run in runs if (cost := _cost(run))],
            samples=[(row_name(row), row.samples) for row in flat if row.samples],
            conditions=next((c for run in experiment.runs() if (c := (run.scores() or {}).get("conditions"))), None),
            commands=commands(experiment),
            version=__version__,
            date=time.strftime("%Y-%m-%d"),
        )
    )


def _charts(experiment: Experiment, flat: list[Row]) -> list[Charts]:
    """The similarity map, accuracies, differences and losses."""
    measured = [row for row in flat if row.scores]
    metric = next(iter(experiment.metrics_measured()), None)
    similarity = experiment.similarity(metric) if metric else None
    runs = [run for run in experiment.runs() if not run.is_baseline]
    charts: list[Charts] = []
    if similarity:
        shown = flat[headline(flat)].run if len(flat) > 1 else BASELINE  # the same as on the first screen
        windows = experiment.run(shown).plan.windows
        title = f"Similarity of all layer pairs ({metric}){f', windows of {shown} outlined' if windows else ''}"
        charts.append((title, [similarity_heatmap(similarity["matrix"], str(metric), windows)]))
    if measured:
        names = [row_name(row) for row in measured]
        if len(measured) > MOST_BARS:
            title = "Zero-shot accuracy, %, coloured by the difference from the control, or else the original"
            charts.append((title, [scores_grid(measured, names, reference_rows(measured, flat))]))
        else:
            charts.append(("Zero-shot accuracy with 95 % intervals", [scores_chart(measured, names)]))
        charts += _differences(measured, measured if len(measured) <= MANY else [flat[headline(flat)]])
    healed = [run for run in runs if run.stage == "recovered"]
    charts += [(f"Loss while healing {run.name}", [loss_chart(run.events())]) for run in healed]
    return charts


def _slide(experiment: Experiment, flat: list[Row]) -> dict[str, Any] | None:
    """The first screen: the headline run's verdict, layers, three numbers and their limits; None without a run."""
    if len(flat) < 2:
        return None
    row = flat[headline(flat)]
    shown = key_figures(row)
    figures = [shown[name] for name in ("speed", "perplexity", CHOICE_LOGPROB)]
    plan = plan_view(experiment.run(row.run).plan, experiment.model_facts)
    gained, cost = row.verdict or ("", "")
    return {
        "name": row_name(row),
        "gained": gained,
        "short": in_short(row),
        "cost": cost,
        "plan": plan,
        "figures": figures,
        "limits": _limits(experiment, row),
    }


def _limits(experiment: Experiment, row: Row) -> list[str]:
    """What the numbers of a row hold for."""
    against, documents = row.compared_with, [entry["documents"] for entry in row.scores.values()]
    limits = [f"Measured on one model, {printable(Path(experiment.settings.model).name)}, at one depth"]
    if documents:
        counts = f"{min(documents):,}" if min(documents) == max(documents) else f"{min(documents):,}–{max(documents):,}"
        limits.append(f"{len(documents)} zero-shot tasks with {counts} documents each, with 95 % intervals over them")
    if row.seed is not None:
        limits.append(f"healed once, with training seed {row.seed}, on {row.recovery_text}")
    limits.append(f"compared with {against.reference}" if against else "compared with nothing")
    if row.speedup and (timed := timed_in(row)):
        limits.append(f"speed {timed}, against the original's")
    return limits


def _cost(run: Run) -> list[str]:
    """What the run took: time for healing and evaluation, disk space."""
    recovery, scores = run.settings.get("recovery", {}), run.scores() or {}
    costs = []
    if "seconds" in recovery:
        tokens = recovery["steps"] * recovery["batch"] * recovery["accumulate"] * recovery["length"]
        costs.append(f"healing {recovery['seconds'] / 60:,.1f} min ({tokens:,} tokens)")
    if seconds := scores.get("conditions", {}).get("seconds"):
        costs.append(f"evaluation {seconds:,.0f} s")
    if size := run.settings.get("merge", {}).get("size_bytes"):
        costs.append(f"{gib(size)} on disk")
    return costs


def _differences(measured: list[Row], shown: list[Row]) -> list[Charts]:
    """Charts of the shown rows' differences from their control, or else the original, over the same documents."""
    by_name = {row_name(row): row for row in measured}
    charts = []
    for row in shown:
        against = row.compared_with
        if not against or against.reference not in by_name or not against.scores:
            continue
        reference = by_name[against.reference]
        answers = documents_of(reference), documents_of(row)
        compared = [results for score in (ACCURACY, CHOICE_LOGPROB) if (results := paired(*answers, score))]
        title = f"{row_name(row)} compared with {row_name(reference)}, 95 % intervals"
        charts.append((title, [differences_chart(results) for results in compared]))
    return charts
