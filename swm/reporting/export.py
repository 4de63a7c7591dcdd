"""Export a run in one of the registered formats."""

from __future__ import annotations

from pathlib import Path

from swm.errors import ExperimentError
from swm.registry import EXPORT_FORMATS, ExportFormat
from swm.workspace.files import replace_file
from swm.workspace.runs import Run


def format_of(path: Path, name: str | None = None) -> ExportFormat:
    """The format of that name; without a name, the one of the path's suffix, or else a transformers folder.

    Raises:
        SettingsError: if no format has that name.
    """
    if name is not None:
        return EXPORT_FORMATS.check(name)
    by_suffix = {entry.suffix: entry for entry in EXPORT_FORMATS.values() if entry.suffix}
    return by_suffix.get(path.suffix, EXPORT_FORMATS["transformers"])


def export_run(run: Run, path: Path, name: str | None = None) -> Path:
    """Write a run to a new file or folder; returns its path.

    Raises:
        ExperimentError: if the path exists, the run has no model, or the format cannot express it.
    """
    form = format_of(path, name)
    if path.exists():
        raise ExperimentError(f"{path} already exists. Name a new file or folder.")
    if run.is_baseline:
        raise ExperimentError(f"Run {run.name} has no merged model to export. Merge it first.")
    if not form.fits(run):
        raise ExperimentError(f"Format {form.name} cannot express run {run.name}: {form.help}. Choose another format.")
    if form.write:
        form.write(run, path)
    elif form.text:
        replace_file(path.absolute(), form.text(run).encode())
    return path
