"""One self-contained HTML page for stakeholders, and the model card of an exported model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from swm import __version__
from swm.errors import ExperimentError
from swm.reporting.commands import create_commands, run_commands
from swm.reporting.compare import compare, flat_rows, row_name
from swm.reporting.html import template_environment
from swm.reporting.table import lines
from swm.workspace.files import SCHEMA, check_space, clean_up, disk_errors, replaced_folder
from swm.workspace.recipe import fits_mergekit, mergekit_yaml, recipe_of
from swm.workspace.runs import BASELINE, Run


def export_run(run: Run, folder: Path) -> Path:
    """Copy a run's model to a folder, with model card (README.md), recipe, and mergekit's form where there is one.

    Raises:
        ExperimentError: if the run has no model, or the folder exists.
    """
    from swm.models.save import check_complete

    if run.is_baseline or not run.has_model:
        raise ExperimentError(f"Run {run.name} has no merged model to export. Merge it first.")
    if folder.exists():
        raise ExperimentError(f"{folder} exists already. Name a new folder.")
    size = sum(file.stat().st_size for file in run.model_folder.iterdir())
    check_space(folder.absolute(), size)
    clean_up(folder.absolute().parent, older_than=24 * 3600)
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
    return json.dumps({"schema": SCHEMA, **recipe_of(run).model_dump(mode="json")}, indent=1)


def model_card(run: Run) -> str:
    """Markdown: what the model is, how it was made, what it scores."""
    flat = flat_rows([row for row in compare(run.experiment) if row["run"] in (BASELINE, run.name)])
    return (
        template_environment()
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
