"""A sweep put together on the page: the same file that the command line takes."""

from __future__ import annotations

from typing import Any

import streamlit as st
import yaml

from pages.shared.fields import number
from pages.shared.new_experiment import model_choices
from pages.shared.plain import plain
from swm.disk.files import whole_path
from swm.errors import SwmError
from swm.jobs.child import start
from swm.jobs.sweep import Sweep, sweeps
from swm.jobs.sweep_file import read_sweep
from swm.registry import MERGE_RULES, PLANNERS, TEXTS
from swm.reporting.glossary import method_name
from swm.settings import PRESETS

NONE = "none"
# How many layers to leave, as an entry of a plan: its title, amounts to pick from (the first one to begin with), help.
TARGETS = {
    "ratio": ("Share of layers to remove", ("0.2", "0.1", "0.3", "0.4"), "Such as 0.25."),
    "layers": ("Layers left", (), "Such as 24. Type a number and press Enter."),
    "memory": (
        "Memory",
        ("1GiB", "4GiB", "8GiB", "16GiB"),
        "For weights and the cache of 4,096 tokens. Such as 900MiB.",
    ),
    "parameters": ("Parameters", ("100M", "1B", "5B"), "At most so many. Such as 5.5B."),
    "speedup": ("Speed", ("1.2", "1.5", "2"), "Times the original's, predicted. Such as 1.3."),
    "loss": ("Perplexity that may be lost", ("20%", "5%", "10%", "50%"), "On the calibration text, before healing."),
}
SHOWN = 8


def new_sweep() -> None:
    """The pickers, the file they give, what it would run, and the button that starts it."""
    with st.expander("New sweep", icon=":material/add:", expanded=not sweeps()[0]):
        grid = _grid()
        problem = ""
        try:
            cells = read_sweep(grid).cells
        except SwmError as error:
            cells, problem = (), str(error)
        left, right = st.columns(2, gap="large")
        text = yaml.safe_dump(grid, sort_keys=False, allow_unicode=True)
        with left:
            st.code(text, language="yaml", wrap_lines=True)
            st.download_button(
                "Download this file",
                text,
                f"{grid['name'] or 'sweep'}.yaml",
                "application/yaml",
                on_click="ignore",
                key="sweep_file",
            )
        with right:
            if problem:
                st.error(plain(problem), icon=":material/error:")
            else:
                healed = sum("--no-recovery" not in cell.recovery for cell in cells)
                st.markdown(f"**{len(cells)} runs**, {healed} of them healed:")
                st.markdown("\n".join(f"- {plain(cell.run)}" for cell in cells[:SHOWN]))
                if len(cells) > SHOWN:
                    st.caption(f"And {len(cells) - SHOWN} more.")
            if st.button("Start this sweep", type="primary", disabled=bool(problem), key="sweep_start"):
                _begin(grid)


def _begin(grid: dict[str, Any]) -> None:
    try:
        sweep = Sweep.create(grid)
        start(sweep, "sweep", ["sweep", str(sweep.folder / "sweep.yaml")])
    except SwmError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return
    st.session_state["sweeps_name"] = sweep.name
    st.rerun()


def _grid() -> dict[str, Any]:
    """The sweep's file as the pickers have it."""
    here, texts = model_choices(), [name for name, text in TEXTS.items() if "calibration" in text.purposes]
    left, right = st.columns(2, gap="large")
    with left:
        name, models, chosen = _models_and_texts(list(here), texts)
    with right:
        methods = st.multiselect(
            "Methods",
            [*MERGE_RULES, *PLANNERS],
            default=["rdsc", "best"],
            format_func=method_name,
            key="sweep_methods",
            bind="query-params",
            help="Sliding-window searches with a merge rule, and planners.",
        )
        target = st.selectbox(
            "Target", list(TARGETS), format_func=lambda kind: TARGETS[kind][0], key="sweep_target", bind="query-params"
        )
        title, amounts, help_text = TARGETS[target]
        chosen_amounts = st.multiselect(
            f"{title}, one model each",
            amounts,
            default=amounts[:1],
            accept_new_options=True,
            placeholder="Type an amount",
            help=help_text,
            key=f"sweep_amounts_{target}",
            bind="query-params",
        )
        recovery = st.multiselect(
            "Healing",
            [NONE, *PRESETS],
            default=[NONE, "quick"],
            key="sweep_recovery",
            bind="query-params",
            help="LoRA presets, or none.",
        )
        seeds = st.multiselect("Seeds", [1234, 1, 2, 3, 4], default=[1234], key="sweep_seeds", bind="query-params")
        limit = number("Documents per task", 1, 20_000, 100, key="sweep_limit", bind="query-params")
    plans = [
        {"planner" if method in PLANNERS else "rule": method, target: [_amount(target, one) for one in chosen_amounts]}
        for method in methods
        if chosen_amounts
    ]
    return {
        "name": name,
        "models": [whole_path(model) if model not in here else model for model in models],
        "texts": [text if text in TEXTS else whole_path(text) for text in chosen],
        "plans": plans,
        "recovery": recovery,
        "seeds": sorted(seeds),
        "limit": int(limit),
    }


def _models_and_texts(here: list[str], texts: list[str]) -> tuple[str, list[str], list[str]]:
    """The sweep's name, and what its experiments are of."""
    name = st.text_input("Name", "my-sweep", max_chars=64, key="sweep_name", bind="query-params")
    models = st.multiselect(
        "Models",
        here,
        default=here[:1],
        key="sweep_models",
        bind="query-params",
        help="The models that are on this machine.",
    )
    models += _lines("Other models, one per line", "sweep_other_models", "Folders, .gguf files or hub ids.")
    chosen = st.multiselect("Texts", texts, default=texts[:1], key="sweep_texts", bind="query-params")
    chosen += _lines("Other texts, one per line", "sweep_other_texts", ".txt or .jsonl files, or hub data sets.")
    return name, models, chosen


def _amount(target: str, text: str) -> float | int | str:
    """A number for targets that are one; the text itself if it is none, which the check of the file then says."""
    try:
        return int(text) if target == "layers" else float(text) if target in ("ratio", "speedup") else text
    except ValueError:
        return text


def _lines(label: str, key: str, help_text: str) -> list[str]:
    """What is typed into a field of several lines."""
    typed = st.text_area(label, height=68, key=key, bind="query-params", help=help_text)
    return [line.strip() for line in typed.splitlines() if line.strip()]
