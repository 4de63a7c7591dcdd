"""What is known of a model and a text before an experiment is created with them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from pathlib import Path
from typing import Any

import streamlit as st

from pages.shared.plain import plain
from swm.disk.machine import free_memory_bytes
from swm.errors import SwmError, TextError
from swm.jobs.child import call
from swm.models.known import BUNDLED
from swm.models.uploads import models_here
from swm.plan import MergePlan, Window
from swm.registry import TEXTS
from swm.settings import PRESETS
from swm.texts.documents import documents
from swm.texts.rows import SUFFIXES, check_source
from swm.workspace.estimate import stage_needs
from swm.workspace.experiments import list_experiments
from swm.workspace.units import gib

SHOWN_CHARACTERS = 280
CONFIG_SECONDS = 3.0  # to wait for a model's config before the page goes on without it; on this machine it takes 1 s
EFFORTS = {"quick": (5, 64), "standard": (10, 128), "thorough": (50, 256)}
EFFORT_TITLES = {
    "standard": "standard: 10 × 128 tokens, as in the paper's code",
    "quick": "quick look: 5 × 64 tokens, a quarter of the time",
    "thorough": "thorough: 50 × 256 tokens, ten times the time",
    "own": "own numbers",
}


@st.cache_data(ttl=60, show_spinner=False)
def model_choices() -> dict[str, str]:
    """Models on this machine by name, with what each is; read again after a minute."""
    return models_here(sorted({experiment.settings.model for experiment in list_experiments()[0]}))


@st.cache_resource(ttl=120, max_entries=32, show_spinner=False)
def _facts(model: str, dtype: str) -> tuple[Future[dict[str, Any]], float]:
    """What `swm estimate` says of a model, read in a child process, and when it was asked; of a bundled one at once."""
    future: Future[dict[str, Any]] = Future()
    if model in BUNDLED:
        stored = "float32" if dtype == "auto" else dtype
        known = {**BUNDLED[model].facts, "dtype": stored}
        future.set_result({**known, "size_bytes": known["parameters"] * (4 if stored == "float32" else 2)})
        return future, time.monotonic()

    def ask() -> None:
        try:
            future.set_result(call(["estimate", model, "--dtype", dtype, "--untimed"], 120)["model"])
        except SwmError as error:
            future.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()  # of a pool, the app would wait for the child when it ends
    return future, time.monotonic()


def model_facts(model: str, dtype: str, tokens: int) -> bool:
    """Layers, size and whether the model fits this machine; fills in later if its config takes long to read.

    Returns:
        False if the model is known not to work.
    """
    if not model.strip():
        st.error("Choose a model, or type a folder, a .gguf file or a hub id.")
        return False
    future, asked = _facts(model, dtype)
    if (left := asked + CONFIG_SECONDS - time.monotonic()) > 0 and not future.done():
        with st.spinner("Reading the model's config"), suppress(TimeoutError):
            future.exception(left)

    @st.fragment(run_every=None if future.done() else 2)
    def facts() -> None:
        if not future.done():
            st.caption(":material/hourglass_top: Reading the model's config.")
            return
        try:
            found = future.result()
        except SwmError as error:
            st.error(plain(str(error)), icon=":material/error:")
            if drawn_early:  # the page's button must go; otherwise no redrawing, in which a click could get lost
                st.rerun()
        else:
            _show_facts(found, tokens)

    drawn_early = not future.done()
    facts()
    return drawn_early or future.exception() is None


def _show_facts(model: dict[str, Any], tokens: int) -> None:
    plan = MergePlan(model["layers"], (Window(0, model["layers"] // 5),) if model["layers"] > 4 else ())
    needs = stage_needs(model, None, plan, PRESETS["quick"], 100, tokens)
    free = free_memory_bytes()
    st.markdown(
        f"**{model['layers']} layers** · {model['parameters'] / 1e6:,.1f} M parameters · "
        f"{gib(model['size_bytes'])} in {model['dtype']} · {plain(model['architecture'])}"
    )
    needed = max(need.memory_bytes for need in needs)
    if needed < free:
        st.markdown(
            f":green[:material/check_circle:] Fits: healing, the largest step, needs {gib(needed)}, and {gib(free)} "
            "are free."
        )
    else:
        st.markdown(
            f":orange[:material/warning:] Needs up to {gib(needed)} (healing), {gib(free)} are free. Layers that do "
            "not fit are read from disk, which is much slower."
        )


def text_preview(texts: str) -> bool:
    """How a text begins, or why that cannot be shown; whether the text may be used."""
    try:
        start = _beginning(texts)
    except (SwmError, OSError, UnicodeDecodeError) as error:
        st.error(plain(str(error)), icon=":material/error:")
        return False
    source = "folder: it is read" if Path(texts).expanduser().is_dir() else "the hub: it is downloaded"
    st.caption(f"Begins: {plain(start)} …" if start else f"A data set from {source} when the experiment is created.")
    return True


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _beginning(texts: str) -> str:
    if texts in TEXTS:
        return documents(texts, "calibration")[0][:SHOWN_CHARACTERS]
    check_source(texts)
    if not texts.endswith(SUFFIXES):
        return ""
    with Path(texts).expanduser().open(encoding="utf-8") as file:
        start = file.read(SHOWN_CHARACTERS).strip()
    if not start:
        raise TextError(f"{texts} is empty. Choose another text.")
    return start
