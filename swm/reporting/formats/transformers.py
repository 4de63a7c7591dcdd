"""A run's model as a folder that plain transformers loads, with model card and recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

from swm.disk.files import check_absent, check_space, clean_up, disk_errors, replaced_folder
from swm.errors import ExperimentError
from swm.progress import Progress, no_progress
from swm.registry import EXPORT_FORMATS, ExportFormat
from swm.reporting.formats.card import model_card
from swm.reporting.formats.mergekit import fits_mergekit, mergekit_yaml
from swm.reporting.formats.recipe import recipe_json
from swm.workspace.runs import Run


def write_folder(run: Run, folder: Path, kind: str | None = None, progress: Progress = no_progress) -> None:
    """Copy a run's model, with model card (README.md), recipe, and a mergekit config if mergekit can express it.

    Raises:
        ExperimentError: if the run has no model, or the disk is full.
    """
    from swm.models.save import check_complete

    if run.is_baseline or not run.has_model:
        raise ExperimentError(f"Run {run.name} has no merged model to export. Merge it first.")
    size = sum(file.stat().st_size for file in run.model_folder.rglob("*"))
    check_space(folder.absolute(), size)
    clean_up(folder.absolute().parent, older_than=24 * 3600)
    with disk_errors(folder, size), replaced_folder(folder.absolute()) as new:
        files = [file for file in run.model_folder.iterdir() if not file.name.startswith(".")]
        for number, file in enumerate(files):
            progress(number, len(files), file.name)
            if file.is_dir():  # as for chat templates beside the default one
                shutil.copytree(file, new / file.name)
            else:
                shutil.copy2(file, new)
        check_complete(new)
        (new / "README.md").write_text(model_card(run), encoding="utf-8")
        (new / "recipe.json").write_text(recipe_json(run), encoding="utf-8")
        if fits_mergekit(run.experiment, run.plan):
            (new / "mergekit.yaml").write_text(mergekit_yaml(run.experiment, run.plan), encoding="utf-8")
        check_absent(folder.absolute())


EXPORT_FORMATS.register(
    ExportFormat(
        "transformers",
        "Transformers folder",
        "the model as a folder that plain transformers loads, with model card and recipe",
        "",
        write=write_folder,
    )
)
