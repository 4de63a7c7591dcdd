"""One sentence for each number, the same wherever it stands."""

from pathlib import Path

from swm.evaluation.paired import SCORES
from swm.reporting.glossary import FORMS, TERMS, TITLES, UNITS

ROOT = Path(__file__).parents[2]


def test_every_score_has_a_title_a_sentence_a_unit_and_a_form():
    assert {*SCORES} == {*UNITS} == {*FORMS}
    assert {*TERMS} == {*TITLES} > {*SCORES}


def test_the_documentation_says_the_same():
    text = " ".join((ROOT / "docs" / "method.md").read_text().split())
    assert [name for name, sentence in TERMS.items() if sentence not in text] == []


def test_no_page_has_a_sentence_of_its_own():
    pages = {file.name: file.read_text() for file in (ROOT / "pages").rglob("*.py")}
    assert not [name for name, text in pages.items() if "lower is better" in text.lower()]
