"""What the documents say there is, is there: every registered name, every command, every page."""

from pathlib import Path

import pytest

from swm.cli.main import COMMANDS
from swm.registry import EXPORT_FORMATS, MERGE_RULES, METRICS, PLANNERS, TEXTS

ROOT = Path(__file__).parents[1]
DOCS = {
    "method.md": (MERGE_RULES, PLANNERS, METRICS),
    "models-and-texts.md": (TEXTS,),
    "export.md": (EXPORT_FORMATS,),
    "command-line.md": (COMMANDS,),
}


@pytest.mark.parametrize("document", DOCS)
def test_a_document_names_all_there_is_to_choose(document):
    text = (ROOT / "docs" / document).read_text()
    missing = [name for choices in DOCS[document] for name in choices if f"`{name}" not in text]
    assert missing == []


def test_the_table_of_contents_and_the_front_page_lead_everywhere():
    contents, front = (ROOT / "docs" / "README.md").read_text(), (ROOT / "README.md").read_text()
    for document in (ROOT / "docs").glob("*.md"):
        if document.name != "README.md":
            assert f"({document.name})" in contents
            assert f"(docs/{document.name})" in front


def test_the_front_page_is_short_and_begins_with_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    first_screen = "\n".join(lines[:25])
    assert "make app" in first_screen
    assert "make test" in first_screen
    assert sum("![" in line for line in lines) == 1


def test_what_we_know_links_to_sections_that_exist():
    text = (ROOT / "LOG.md").read_text()
    rows = [line for line in text.splitlines() if "](#" in line]
    assert len(rows) >= 20
    heads = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
    anchors = {"".join(c for c in head if c.isalnum() or c in " -_").replace(" ", "-") for head in heads}
    links = {link.split(")")[0] for line in rows for link in line.split("](#")[1:]}
    assert links - anchors == set()
