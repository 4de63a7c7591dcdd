"""What every page begins with: page settings, the sidebar with experiment and steps, errors shown kindly."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import streamlit as st

from swm.errors import SwmError
from swm.experiments import Experiment, Run, State, list_experiments
from swm.jobs import Target, active_targets

ASSETS = Path(__file__).parents[2] / "assets"
STEPS = (
    ("pages/experiment.py", "Experiment", "Choose a model and a calibration text"),
    ("pages/redundancy.py", "Redundancy", "See how alike the layers are"),
    ("pages/preview.py", "Preview", "Tune the threshold, see which windows merge"),
    ("pages/run.py", "Run", "Merge, heal with LoRA, evaluate"),
    ("pages/compare.py", "Compare", "Scores, perplexity, speed and size before and after"),
    ("pages/playground.py", "Playground", "One prompt, two models"),
    ("pages/report.py", "Report", "One page for stakeholders, and the downloads"),
)


def start_page(title: str, sentence: str = "") -> Experiment | None:
    """Set up the page and draw sidebar and heading; gives the experiment chosen in the sidebar."""
    st.set_page_config(
        page_title=f"{title} – Sliding-Window Merging Studio", page_icon=str(ASSETS / "icon.svg"), layout="wide"
    )
    st.html(ASSETS / "style.css")
    st.logo(ASSETS / "logo.svg", icon_image=ASSETS / "icon.svg", size="large")
    experiments, broken = list_experiments()
    with st.sidebar:
        experiment = _choose(experiments)
        _steps(experiment)
        _running(experiments)
    for message in broken:
        st.warning(message, icon=":material/warning:")
    st.title(title, anchor=False)
    if sentence:
        st.markdown(f":gray[{sentence}]")
    return experiment


def require_experiment(experiment: Experiment | None) -> Experiment:
    """The experiment, or an empty page that says how to make one."""
    if experiment is None:
        st.info("There is no experiment yet.", icon=":material/science:")
        st.page_link("pages/experiment.py", label="Create an experiment", icon=":material/add:")
        st.stop()
    return experiment


def caption(experiment: Experiment) -> None:
    """What the numbers of the page were measured with."""
    s = experiment.settings
    shipped = " · results that ship with the program" if experiment.read_only else ""
    st.caption(f"{Path(s.model).name} · {s.texts} {s.count} × {s.length} tokens · seed {s.seed}{shipped}")


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show what the user can mend in place of a traceback, and end the page there."""
    try:
        yield
    except SwmError as error:
        st.error(str(error), icon=":material/error:")
        st.stop()


def command_line(*arguments: str) -> None:
    """The same from the command line."""
    with st.expander("The same from the command line"):
        st.code(shlex.join(["python", "-m", "swm", *arguments]), language="bash", wrap_lines=True)


def next_step(page: str, label: str) -> None:
    st.page_link(page, label=label, icon=":material/arrow_forward:")


def job_status(target: Target, state: State) -> None:
    """One line and a bar on what a job does, or how it ended."""
    if state.active:
        share = min(1.0, state.done / state.total) if state.total else 0.0
        st.progress(share, text=f"{state.stage}: {state.text or state.status} · {duration(state.seconds)}")
    elif state.status == "failed":
        st.error(f"{state.stage} failed: {state.error}", icon=":material/error:")
    elif state.status == "interrupted":
        st.warning(f"{state.stage} was interrupted. {state.error}", icon=":material/warning:")
    elif state.status == "cancelled":
        st.info(f"{state.stage} was cancelled; what was finished is kept.", icon=":material/cancel:")
    elif state.status == "done":
        st.caption(f"{state.stage} took {duration(state.seconds)}")


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _choose(experiments: list[Experiment]) -> Experiment | None:
    if not experiments:
        return None
    by_name = {experiment.name: experiment for experiment in experiments}
    wanted = st.query_params.get("experiment")
    if wanted is not None and wanted not in by_name:
        st.warning(f"There is no experiment {wanted[:64]}.")
        st.query_params.pop("experiment")
    name = st.selectbox(
        "Experiment",
        list(by_name),
        key="experiment",
        bind="query-params",
        help="Everything on the pages belongs to it.",
    )
    return by_name.get(name) if name else None


def _steps(experiment: Experiment | None) -> None:
    st.page_link("app.py", label="Home", icon=":material/home:")
    for page, label, help_text in STEPS:
        icon = (
            ":material/check_circle:"
            if experiment and _done(experiment, label)
            else ":material/radio_button_unchecked:"
        )
        st.page_link(page, label=label, icon=icon, help=help_text)


def _done(experiment: Experiment, step: str) -> bool:
    runs = [run for run in experiment.runs() if not run.is_baseline]
    return {
        "Experiment": True,
        "Redundancy": bool(experiment.metrics_measured()),
        "Preview": bool(experiment.rules_searched()),
        "Run": any(run.stage in ("merged", "recovered") for run in runs),
        "Compare": any(run.scores() for run in runs),
    }.get(step, False)


def _running(experiments: list[Experiment]) -> None:
    jobs = active_targets(experiments)
    if not jobs:
        return
    st.caption("Running now")
    for target, state in jobs:
        name = f"{target.experiment.name} / {target.name}" if isinstance(target, Run) else target.name
        share = min(1.0, state.done / state.total) if state.total else 0.0
        st.progress(share, text=f"{name}: {state.stage}, {state.text or state.status}")


def poll_while_active(target: Target) -> None:
    """Draw the page again every second while the target has a job, and once when it ends."""
    if not target.state().active:
        return

    @st.fragment(run_every=1.0)
    def watch() -> None:
        state = target.state()
        key = f"poll_{target.folder}"
        seen = st.session_state.get(key)
        st.session_state[key] = (state.status, state.done, state.text)
        if seen is not None and seen != st.session_state[key]:
            st.rerun()

    watch()
