"""The model card of a run in Markdown."""

from __future__ import annotations

from swm import __version__
from swm.registry import EXPORT_FORMATS, ExportFormat
from swm.reporting.commands import card_commands
from swm.reporting.compare import compare, flat_rows
from swm.reporting.figures import lines
from swm.reporting.glossary import TERMS, TITLES
from swm.reporting.html import template_environment
from swm.reporting.judged import judged
from swm.reporting.names import row_name
from swm.workspace.controls import control_of
from swm.workspace.runs import BASELINE, Run


def model_card(run: Run) -> str:
    """The model card: what the model is, how it was made, its scores."""
    control = control_of(run)
    names = (BASELINE, run.name, control.name if control else None)
    flat = flat_rows(judged([row for row in compare(run.experiment) if row.run in names]))
    card = template_environment().get_template("card.md")
    return card.render(
        run=run,
        plan=run.plan,
        settings=run.experiment.settings,
        recovery=run.settings.get("recovery"),
        verdict=next(str(row.verdict) for row in flat[::-1] if row.run == run.name),
        terms=[(TITLES[name], text) for name, text in TERMS.items()],
        names=[row_name(row) for row in flat],
        lines=lines(flat),
        commands=card_commands(run),
        version=__version__,
    )


EXPORT_FORMATS.register(
    ExportFormat("card", "Model card", "what the model is, how it was made, its scores", ".md", model_card)
)
