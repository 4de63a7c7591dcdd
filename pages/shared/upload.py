"""Upload a model through the browser."""

from __future__ import annotations

import streamlit as st

from pages.shared.new_experiment import model_choices
from pages.shared.plain import plain
from swm.errors import SwmError
from swm.models.uploads import SUFFIXES, keep_upload


def upload() -> None:
    """A popover that takes a model's files; the uploaded model is then the chosen one."""
    done = st.session_state.get("experiment_uploads", 0)  # a new key closes the popover and empties its fields
    with st.popover("Upload a model", icon=":material/upload:", key=f"experiment_upload_{done}"):
        files = st.file_uploader(
            "One .gguf file, or all files of a Hugging Face folder",
            type=list(SUFFIXES),
            accept_multiple_files=True,
            key=f"experiment_files_{done}",
            help="Files pass through this app's memory. For large models, type their path instead.",
        )
        name = st.text_input("Folder name", "uploaded-model", max_chars=64, key=f"experiment_folder_{done}")
        st.button("Use this model", type="primary", disabled=not files, on_click=_keep, args=[name, files])
        if not files:
            st.caption("Choose the files first.")
        if problem := st.session_state.pop("experiment_upload_problem", ""):
            st.error(plain(problem), icon=":material/error:")


def _keep(name: str, files: list[st.runtime.uploaded_file_manager.UploadedFile]) -> None:
    """Before the page is drawn again, so that the picker can still be set."""
    try:
        path = keep_upload(name, {file.name: file for file in files})
    except SwmError as error:
        st.session_state["experiment_upload_problem"] = str(error)
    else:
        model_choices.clear()
        st.session_state["experiment_model"], st.session_state["experiment_typed"] = str(path), ""
        st.session_state["experiment_uploads"] = st.session_state.get("experiment_uploads", 0) + 1
