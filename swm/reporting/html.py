"""Jinja environment for the HTML report and the model card."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from swm.errors import printable
from swm.reporting.preview import TEMPLATES

# Of "16 %", "× 1.17" and "[-0.3, +0.2 %]"
SPACES_IN_FIGURES = re.compile(r"(?<=\d) (?=%)|(?<=×) (?=\d)|(?<=\d,) (?=[-+]?[\d.,]+(?: %)?\])")


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
