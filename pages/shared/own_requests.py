"""Requests of one's own: a file from the browser, checked, previewed and kept."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from pages.shared.plain import plain
from swm.errors import SwmError
from swm.texts.requests import keep_requests, kept_requests, read_requests

MOST_MIB = 50
SHOWN = 3  # requests of the preview


def own_requests() -> list[str]:
    """The files of one's own that are chosen, those uploaded now included."""
    file = st.file_uploader(
        "Your own requests",
        type=["jsonl", "txt"],
        key="abilities_file",
        max_upload_size=MOST_MIB,
        help='One JSON object per line with "prompt" and "answer", and "choices" if there are some. Or a text: the '
        "last third of each paragraph is the answer.",
    )
    if file:
        try:
            path = keep_requests(file.name, file.getvalue())
            found = read_requests(path)
        except SwmError as error:
            st.error(plain(str(error)), icon=":material/error:")
        else:
            st.caption(f"{len(found):,} requests, the first of which:")
            rows = [{"prompt": each.prompt[-200:], "answer": each.answer[:200]} for each in found[:SHOWN]]
            st.dataframe(pd.DataFrame(rows), hide_index=True)
    kept = kept_requests()
    if not kept:
        return []
    return st.multiselect(
        "Of your own",
        [str(path) for path in kept],
        format_func=lambda path: path.rpartition("/")[2],
        key="abilities_own",
    )
