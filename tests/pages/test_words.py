"""Marked answers: nothing of an answer is lost or read as markup, and the mark is on the first word that differs."""

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pages.shared.words import marked

WORDS = st.lists(st.sampled_from(["a", "b", "cat", "[x]", "*y*", "$z$", "`q`", "\n", "\n\n", "c\\d"]), max_size=12)

PAGES = Path(__file__).parents[2] / "pages"


def unmarked(markdown):
    """What a reader sees."""
    text = re.sub(r":orange(?:-background)?\[((?:\\.|[^\]\\])*)\]", r"\1", markdown.replace("  \n", "\n"))
    return re.sub(r"\\(.)", r"\1", text)


@given(WORDS, WORDS)
def test_the_words_are_all_there_and_marked_from_the_first_difference(own, original):
    answer, other = " ".join(own), " ".join(original)
    shown = marked(answer, other)
    if not answer.split():
        assert shown == "*ends here*"
        return
    assert unmarked(shown).split() == answer.split()
    same = 0
    while same < min(len(answer.split()), len(other.split())) and answer.split()[same] == other.split()[same]:
        same += 1
    marks = re.findall(r":orange-background\[((?:\\.|[^\]\\])*)\]", shown)
    expected = answer.split()[same : same + 1]
    if [re.sub(r"\\(.)", r"\1", mark) for mark in marks] != expected:
        # a line break is part of what differs
        assert "\n" in answer or "\n" in other
        assert len(marks) <= 1


def test_examples_from_pencil():
    assert marked("Paris is big", "Paris was big") == "Paris :orange-background[is] :orange[big]"
    assert marked("Paris", "Paris is big") == "Paris"
    assert marked("one\n\ntwo [three]", "one") == "one  \n:orange-background[two] :orange[\\[three\\]]"
    assert marked("same words", None) == "same words"
    assert marked("", "x") == marked(" \n", None) == "*ends here*"


def test_a_page_is_left_with_parameters_of_its_own():
    """Without any, Streamlit refuses to leave a page of which a field is in the address."""
    calls = re.findall(r"switch_page\([^\n]*", "\n".join(file.read_text() for file in PAGES.rglob("*.py")))
    assert len(calls) >= 2
    assert all("query_params=" in call for call in calls), calls
