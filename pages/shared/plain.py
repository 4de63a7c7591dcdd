"""Untrusted text on a page."""

import re

LINKS = re.compile(r"(://|www|@)")  # an invisible character in an address keeps it from becoming a link
MARKUP = re.compile(r"([\\`\[\]$<*])")


def plain(text: str) -> str:
    """Untrusted text, escaped for Markdown: shows no links, pictures, colours or formulas."""
    text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be sent to a browser
    return MARKUP.sub(r"\\\1", LINKS.sub("\\1\u2060", text))
