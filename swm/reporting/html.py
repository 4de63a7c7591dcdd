"""Jinja environment and plotly figures for the HTML report."""

from __future__ import annotations

import re

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from swm.errors import printable
from swm.reporting.preview import TEMPLATES

# Of "16 %", "× 1.17" and "[-0.3, +0.2 %]"
SPACES_IN_FIGURES = re.compile(r"(?<=\d) (?=%)|(?<=×) (?=\d)|(?<=\d,) (?=[-+]?[\d.,]+(?: %)?\])")


def figure_html(figure: go.Figure, first: bool) -> Markup:
    """A plotly figure as HTML; the `first` one on a page carries plotly's script."""
    figure.update_layout(template="plotly_white", font={"family": "system-ui, sans-serif"})
    html = figure.to_html(full_html=False, include_plotlyjs=first, config={"displaylogo": False, "responsive": True})
    return Markup(html)  # noqa: S704 - plotly's own output; user input goes through the template


def template_environment() -> Environment:
    """Jinja environment for report and model card; escapes HTML."""
    environment = Environment(
        loader=PackageLoader("swm.reporting", "templates"),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["layers_css"] = Markup((TEMPLATES / "layers.css").read_text(encoding="utf-8"))  # noqa: S704
    environment.globals["layers_js"] = Markup((TEMPLATES / "layers.js").read_text(encoding="utf-8"))  # noqa: S704
    environment.filters["printable"] = printable
    environment.filters["unbroken"] = lambda text: SPACES_IN_FIGURES.sub("\u00a0", text)
    environment.filters["number"] = lambda value: f"{value:,.1f}"
    return environment
