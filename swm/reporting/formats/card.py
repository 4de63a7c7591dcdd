"""The model card of a run in Markdown."""

from __future__ import annotations

from swm import __version__
from swm.registry import EXPORT_FORMATS, ExportFormat
from swm.reporting.commands import create_commands, run_commands
from swm.reporting.compare import compare, flat_rows, row_name
from swm.reporting.html import template_environment
from swm.reporting.table import lines
from swm.workspace.runs import BASELINE, Run


def model_card(run: Run) -> str:
    """The model card: what the model is, how it was made, its scores."""
    flat = flat_rows([row for row in compare(run.experiment) if row["run"] in (BASELINE, run.name)])
    card = template_environment().get_template("card.md")
    return card.render(
        run=run,
        plan=run.plan,
        settings=run.experiment.settings,
        recovery=run.settings.get("recovery"),
        names=[row_name(row) for row in flat],
        lines=lines(flat),
        commands=[*create_commands(run.experiment), *run_commands(run)],
        version=__version__,
    )


EXPORT_FORMATS.register(
    ExportFormat("card", "Model card", "what the model is, how it was made, its scores", ".md", model_card)
)
