"""Export a run in one of the registered formats."""

from __future__ import annotations

from pathlib import Path

from swm.disk.files import check_absent, replace_file
from swm.errors import ExperimentError, SettingsError
from swm.progress import Progress, no_progress
from swm.registry import EXPORT_FORMATS, ExportFormat
from swm.workspace.runs import Run


def format_of(path: Path, name: str | None = None) -> ExportFormat:
    """The format of that name; without a name, the one of the path's suffix, or else a transformers folder.

    Raises:
        SettingsError: if no format has that name.
    """
    if name is not None:
        return EXPORT_FORMATS.check(name)
    by_suffix = {entry.suffix: entry for entry in EXPORT_FORMATS.values() if entry.suffix}
    return by_suffix.get(path.suffix.lower(), EXPORT_FORMATS["transformers"])


def check_export(run: Run, path: Path, name: str | None = None, kind: str | None = None) -> ExportFormat:
    """The format of an export that can begin; raises what `export_run` would raise before it writes anything."""
    form = format_of(path, name)
    check_absent(path)
    if run.is_baseline:
        raise ExperimentError(f"Run {run.name} has no merged model to export. Merge it first.")
    if not form.fits(run):
        raise ExperimentError(f"Format {form.name} cannot express run {run.name}: {form.help}. Choose another format.")
    if kind is not None and kind not in form.kinds:
        known = f"Choose one of: {', '.join(form.kinds)}" if form.kinds else "Leave --type out"
        raise SettingsError(f"Format {form.name} cannot be written in type {kind[:20]}. {known}.")
    return form


def export_run(
    run: Run, path: Path, name: str | None = None, kind: str | None = None, progress: Progress = no_progress
) -> Path:
    """Write a run to a new file or folder; returns its path.

    Args:
        kind: number format of the weights, for formats that have several.

    Raises:
        SettingsError: if the format has no such number format.
        ExperimentError: if the path exists, the run has no model, or the format cannot express it.
    """
    form = check_export(run, path, name, kind)
    if form.write:
        form.write(run, path, kind, progress)
    elif form.text:
        replace_file(path.absolute(), form.text(run).encode())
    return path
