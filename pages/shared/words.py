"""Names of models, and their answers with the words marked from the first that differs from the original's on."""

from __future__ import annotations

import html
import re

import streamlit as st

from pages.shared.plain import plain
from swm.reporting.names import row_name
from swm.reporting.row import Row


def model_heading(name: str, colour: str) -> None:
    """A model's name after a dot in its colour."""
    dot = f'<span style="color:{colour}">●</span>'
    st.html(f"<b>{dot} {html.escape(name)}</b>")


def show_words(original: Row, row: Row) -> None:
    """How both models continued the first prompt, if they were asked: rows of `compare`."""
    answers = [{sample["prompt"]: sample["answer"] for sample in model.samples} for model in (original, row)]
    prompt = next((prompt for prompt in answers[0] if prompt in answers[1]), None)
    if prompt is None:
        return
    st.caption(f"“{plain(prompt)} …”")
    for column, title, answer in zip(st.columns(2, gap="medium"), ("original", row_name(row)), answers, strict=True):
        column.caption(plain(title))
        column.markdown(marked(answer[prompt], None if title == "original" else answers[0][prompt]))


def marked(answer: str, original: str | None) -> str:
    """Markdown of an answer: words shared with the original's plain, the first other one on orange, the rest orange.

    Args:
        original: None if this is the original's own answer.
    """
    words, others = _words(answer), _words(answer if original is None else original)
    if not words:
        return "*ends here*"
    same = 0
    while same < min(len(words), len(others)) and words[same] == others[same]:
        same += 1
    shown = plain("".join(words[:same]).replace("\n", "\0"))
    if same < len(words):
        first = words[same]
        space = first[: len(first) - len(first.lstrip())]
        shown += space.replace("\n", "\0") + f":orange-background[{plain(first.strip())}]"
        shown += _in_orange("".join(words[same + 1 :]))
    return shown.replace("\0", "  \n")


def _words(text: str) -> list[str]:
    """Words with the white space before each; no blank lines."""
    return re.findall(r"\s*\S+", re.sub(r"\s*\n\s*", "\n", text.strip()))


def _in_orange(text: str) -> str:
    lines = text.split("\n")
    return "\0".join(re.sub(r"^(\s*)(.*\S)", r"\1:orange[\2]", plain(line)) for line in lines)
