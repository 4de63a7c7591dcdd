"""One self-contained HTML page for stakeholders, and the model card of an exported model."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from swm import __version__, charts
from swm.compare import compare, documents_of, flat_rows, lines, row_name
from swm.errors import ExperimentError, printable
from swm.estimate import gib
from swm.experiments import BASELINE, Experiment, Run
from swm.files import SCHEMA, check_space, disk_errors, replace_file, replaced_folder, sweep
from swm.metrics import Measure
from swm.paired import paired
from swm.plan import plan_arguments
from swm.presets import recovery_arguments
from swm.recipe import fits_mergekit, mergekit_yaml, recipe_of
from swm.view import TEMPLATES, plan_view


def write_report(experiment: Experiment, file: Path) -> None:
    """Write the report; it needs no network when it is opened.

    Raises:
        ExperimentError: if the file cannot be written.
    """
    with disk_errors(file, 0):
        file = file.absolute().resolve()
        special = file.exists() and not file.is_file()
    if special:
        raise ExperimentError(f"{file} is not a file that can be written over. Name a file, such as report.html.")
    replace_file(file, report_html(experiment).encode())


def report_html(experiment: Experiment) -> str:
    """The report: what was done, similarity, plans, scores before and after, caveats, commands."""
    rows = compare(experiment)
    flat = flat_rows(rows)
    measured = [row for row in flat if row["scores"]]
    metric = next(iter(experiment.metrics_measured()), None)
    similarity = experiment.similarity(metric) if metric else None
    runs = [run for run in experiment.runs() if not run.is_baseline]
    figures: list[tuple[str, go.Figure]] = []
    if similarity:
        windows = runs[0].plan.windows if runs else ()
        title = f"Similarity of all layer pairs ({metric}), windows of the first run outlined"
        figures.append((title, charts.similarity_heatmap(similarity["matrix"], str(metric), windows)))
    figures += [
        (f"Recovery of run {run.name}", charts.loss_chart(run.events())) for run in runs if run.stage == "recovered"
    ]
    if measured:
        names = [row_name(row) for row in measured]
        figures.append(("Zero-shot accuracy with standard errors", charts.scores_chart(measured, names)))
        figures += _differences(measured)
    return (
        _environment()
        .get_template("report.html")
        .render(
            experiment=experiment,
            settings=experiment.settings,
            facts=experiment.model_facts,
            names=[row_name(row) for row in flat],
            lines=lines(flat),
            plans=[(run.name, run.source, plan_view(run.plan, experiment.model_facts)) for run in runs],
            figures=[(title, _figure_html(figure, first=i == 0)) for i, (title, figure) in enumerate(figures)],
            costs=[(run.name, cost) for run in runs if (cost := _cost(run))],
            samples=[(row_name(row), row["samples"]) for row in flat if row["samples"]],
            conditions=next((c for run in experiment.runs() if (c := (run.scores() or {}).get("conditions"))), None),
            commands=commands(experiment),
            version=__version__,
            date=time.strftime("%Y-%m-%d"),
        )
    )


def _cost(run: Run) -> list[str]:
    """What the run took: healing, evaluation, space."""
    recovery, scores = run.settings.get("recovery", {}), run.scores() or {}
    found = []
    if "seconds" in recovery:
        tokens = recovery["steps"] * recovery["batch"] * recovery["accumulate"] * recovery["length"]
        found.append(f"healing {recovery['seconds'] / 60:,.1f} min ({tokens:,} tokens)")
    if seconds := scores.get("conditions", {}).get("seconds"):
        found.append(f"evaluation {seconds:,.0f} s")
    if size := run.settings.get("merge", {}).get("size_bytes"):
        found.append(f"{gib(size)} on disk")
    return found


def _differences(measured: list[dict[str, Any]]) -> list[tuple[str, go.Figure]]:
    """Each row against the original, over the same documents."""
    before = documents_of(measured[0]) if measured[0]["run"] == BASELINE else {}
    compared = [(row_name(row), paired(before, documents_of(row))) for row in measured[1:]]
    title = "Difference of {} to the original, with its 95 % interval over the same documents"
    return [(title.format(name), charts.differences_chart(found)) for name, found in compared if found]


def commands(experiment: Experiment) -> list[str]:
    """The commands that repeat the experiment."""
    found = create_commands(experiment)
    for name in experiment.metrics_measured():
        found.append(_command("measure", experiment.name, *_measure_options(experiment.similarity(name) or {})))
    for run in experiment.runs():
        found += run_commands(run)
    return [*found, _command("compare", experiment.name)]


def _measure_options(data: dict[str, Any]) -> list[str]:
    changed = {name: data[name] for name, default in asdict(Measure()).items() if data.get(name, default) != default}
    return [word for name, value in changed.items() for word in (f"--{name.removesuffix('_tokens')}", str(value))]


def create_commands(experiment: Experiment) -> list[str]:
    """The command that makes the same experiment."""
    settings = [word for name, value in asdict(experiment.settings).items() for word in (f"--{name}", str(value))]
    return [_command("create", experiment.name, *settings)]


def run_commands(run: Run) -> list[str]:
    """The commands that repeat a run."""
    name, settings, found = (run.experiment.name, run.name), run.settings, []
    if not run.is_baseline:
        found.append(_command("merge", *name, *plan_arguments(run.plan)))
    if "recovery" in settings:
        found.append(_command("recover", *name, *recovery_arguments(settings["recovery"])))
    if scores := run.scores():
        limit = scores["limit"] if scores["limit"] is not None else "none"
        texts = ",".join(scores["perplexity"])
        found.append(
            _command("evaluate", *name, "--tasks", ",".join(scores["tasks"]), "--limit", str(limit), "--texts", texts)
        )
    if run.timing() and not run.is_baseline:
        found.append(_command("time", *name))
    return found


def _command(*arguments: str) -> str:
    return shlex.join(["python", "-m", "swm", *arguments])


def export_run(run: Run, folder: Path) -> Path:
    """Copy a run's model to a folder, with model card (README.md), recipe, and mergekit's form where there is one.

    Raises:
        ExperimentError: if the run has no model, or the folder exists.
    """
    from swm.saving import check_complete  # torch, which pages must not load

    if run.is_baseline or not run.has_model:
        raise ExperimentError(f"Run {run.name} has no merged model to export. Merge it first.")
    if folder.exists():
        raise ExperimentError(f"{folder} exists already. Name a new folder.")
    size = sum(file.stat().st_size for file in run.model_folder.iterdir())
    check_space(folder.absolute(), size)
    sweep(folder.absolute().parent, older_than=24 * 3600)
    with disk_errors(folder, size), replaced_folder(folder.absolute()) as new:
        shutil.copytree(run.model_folder, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        check_complete(new)
        (new / "README.md").write_text(model_card(run), encoding="utf-8")
        (new / "recipe.json").write_text(recipe_json(run), encoding="utf-8")
        if fits_mergekit(run.experiment, run.plan):
            (new / "mergekit.yaml").write_text(mergekit_yaml(run.experiment, run.plan), encoding="utf-8")
    return folder


def recipe_json(run: Run) -> str:
    """What `python -m swm repeat FILE` makes the same run from."""
    return json.dumps({"schema": SCHEMA, **recipe_of(run).to_dict()}, indent=1)


def model_card(run: Run) -> str:
    """Markdown: what the model is, how it was made, what it scores."""
    flat = flat_rows([row for row in compare(run.experiment) if row["run"] in (BASELINE, run.name)])
    return (
        _environment()
        .get_template("card.md")
        .render(
            run=run,
            plan=run.plan,
            settings=run.experiment.settings,
            recovery=run.settings.get("recovery"),
            names=[row_name(row) for row in flat],
            lines=lines(flat),
            commands=[*create_commands(run.experiment), *run_commands(run)],
            version=__version__,
        )
    )


def _figure_html(figure: go.Figure, first: bool) -> Markup:
    figure.update_layout(template="plotly_white", font={"family": "system-ui, sans-serif"})
    html = figure.to_html(full_html=False, include_plotlyjs=first, config={"displaylogo": False, "responsive": True})
    return Markup(html)  # noqa: S704 - plotly's own output; what the user typed goes through the template


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("swm", "templates"),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["layers_css"] = Markup((TEMPLATES / "layers.css").read_text(encoding="utf-8"))  # noqa: S704
    environment.globals["layers_js"] = Markup((TEMPLATES / "layers.js").read_text(encoding="utf-8"))  # noqa: S704
    environment.filters["printable"] = printable
    environment.filters["number"] = lambda value: f"{value:,.1f}"
    return environment
