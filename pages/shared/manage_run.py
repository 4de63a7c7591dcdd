"""Rename, export or delete a run."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from pages.shared.fields import number
from pages.shared.frame import shown_errors
from pages.shared.plain import plain
from swm.disk.files import check_absent, disk_errors, home
from swm.disk.names import check_name
from swm.errors import SwmError
from swm.jobs.child import start
from swm.registry import EXPORT_FORMATS, ExportFormat, as_sentence
from swm.reporting.names import stage_name
from swm.workspace.housekeeping import delete, rename
from swm.workspace.runs import Run

WITHOUT_ATTENTION = ("LlamaForCausalLM", "MistralForCausalLM")  # whose layers llama.cpp also runs without attention


def manage(run: Run, place: Any) -> str | None:
    """Popovers beside the run's buttons; the run to open next, empty if it was deleted, None if nothing changed."""
    with place.popover("Export", icon=":material/output:"):
        export(run)
    with place.popover("Rename", icon=":material/edit:", key=f"run_renaming_{run.name}"), shown_errors():
        name = st.text_input("New name", run.name, max_chars=64, key=f"run_rename_{run.name}")
        if st.button("Rename", type="primary", key="run_rename", disabled="method" in run.settings):
            return rename(run, name).name
        study = "A study finds its runs by name, so they cannot be renamed. Duplicate the run instead."
        st.caption(
            study if "method" in run.settings else "A sweep finds its runs by name, and would run a renamed one again."
        )
    with place.popover("Delete", icon=":material/delete:"), shown_errors():
        st.markdown(f"Deletes run **{run.name}** with its model and results. This cannot be undone.")
        if st.button("Delete for good", type="primary", key="run_delete"):
            delete(run)
            return ""
    return None


def write(run: Run, form: ExportFormat, name: str, *options: str) -> None:
    """Start a job that writes a run in a format to the exports' folder, or say why that cannot be."""
    try:
        path = home() / "exports" / f"{check_name(name)}{form.suffix}"
        check_absent(path)
        with disk_errors(path, 0):
            path.parent.mkdir(exist_ok=True)
        start(run, "export", ["export", run.experiment.name, run.name, str(path), "--format", form.name, *options])
    except SwmError as error:
        st.error(plain(str(error)), icon=":material/error:")
    else:
        st.rerun()  # the job's progress, and at its end the path, stand where the page shows the run's job


def free_name(run: Run, form: ExportFormat) -> str:
    """A name for an export that nothing in the exports' folder has yet."""
    name = f"{run.experiment.name}-{run.name}"[:60]
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next((one for one in names if not (home() / "exports" / f"{one}{form.suffix}").exists()), name)


def offer_weights(run: Run, form: ExportFormat, label: str, name: str, key: str) -> None:
    """A button that writes a run with its weights, beside the choices that a GGUF file has."""
    options: list[str] = []
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if form.kinds:
            kind = st.selectbox(
                "GGUF type",
                [None, *form.kinds],
                format_func=lambda kind: kind or "automatic",
                key=f"{key}_kind_{form.name}_{run.name}",
                help=f"Automatic: {form.usual}.",
                width=170,
            )
            options += ["--type", kind] if kind else []
        if (
            form.kinds
            and run.experiment.model_facts.get("architecture") in WITHOUT_ATTENTION
            and run.plan.layers_left > 1
        ):
            count = number(
                "Layers without attention",
                0,
                run.plan.layers_left - 1,
                0,
                key=f"{key}_attention_{run.name}",
                help="Leaves out the attention of the layers that need it least, for long texts: these layers keep no "
                "keys and values. The card says what it costs. Choosing them takes some forward passes for each.",
                width=200,
            )
            options += ["--without-attention", str(count)] if count else []
        clicked = st.button(
            label,
            key=f"{key}_{form.name}_{run.name}",
            icon=":material/save:",
            disabled=not (run.has_model and form.fits(run)),
            help=as_sentence(form.help),
        )
    if run.has_model and not form.fits(run):
        st.caption(f"{form.title} cannot describe this run's plan.")
    if clicked:
        write(run, form, name, *options)


def offer_download(run: Run, form: ExportFormat, label: str, name: str, key: str) -> None:
    """A button that downloads a run in a format of one text, made on the click."""
    assert form.text
    st.download_button(
        label,
        partial(form.text, run),
        f"{name}-{form.name}{form.suffix}",
        key=f"{key}_{form.name}_{run.name}",
        icon=":material/download:",
        help=as_sentence(form.help),
    )


def export(run: Run) -> None:
    """The run as files: small ones to download, those with weights written to a folder of this machine."""
    name = st.text_input("Name", f"{run.experiment.name}-{run.name}"[:64], max_chars=64, key=f"export_name_{run.name}")
    for form in EXPORT_FORMATS.values():
        if form.text and form.fits(run):
            offer_download(run, form, f"{form.title} ({form.suffix})", name, "run_export")
        elif form.write:
            offer_weights(run, form, form.title, name, "run_export")
    if not run.has_model:
        merged = run.stage != "planned"
        st.caption(
            "This run's weights were not kept. Duplicate the run to merge it again."
            if merged
            else "There are no weights to write yet: merge the run first."
        )
    st.caption(
        f"The model as it is now: {stage_name(run)}. Models are written to the folder `exports` of the studio's home "
        "on the machine that runs it."
    )
