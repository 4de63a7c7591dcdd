"""The frame of every page: page settings, sidebar with experiment and steps, error messages, job progress."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import streamlit as st

from pages.shared.choices import STUDY, end_as_gone, forget_choice
from pages.shared.login import require_login
from pages.shared.navigation import CHOSEN, set_address
from pages.shared.plain import plain
from pages.shared.tour import show_tour
from swm.disk.files import demo_experiment
from swm.disk.names import EXAMPLE, is_shipped, list_names
from swm.errors import SwmError
from swm.jobs.child import active_targets, all_targets, cancel, start
from swm.jobs.cluster import watch_again
from swm.jobs.tracking import Target
from swm.reporting.commands import page_commands
from swm.workspace.estimate import about
from swm.workspace.experiments import Experiment, list_experiments
from swm.workspace.state import State
from swm.workspace.units import duration

LATE_SECONDS = 1.0  # until a browser has the address that it was sent
ASSETS = Path(__file__).parents[2] / "assets"
SIDEBAR = 240  # pixels
STEPS = (
    ("pages/experiment.py", "Experiment", "Choose a model and a calibration text"),
    ("pages/redundancy.py", "Redundancy", "See how similar the layers are"),
    ("pages/preview.py", "Preview", "Choose a threshold and see which windows merge"),
    ("pages/run.py", "Run", "Merge, heal with LoRA, evaluate"),
    ("pages/compare.py", "Compare", "Scores, perplexity, speed and size before and after"),
)
ROOMS = (
    ("pages/abilities.py", "Abilities", "See what each layer does", ":material/psychology:"),
    ("pages/studies.py", "Studies", "Every method at several depths, on this model", ":material/query_stats:"),
    ("pages/sweeps.py", "Sweeps", "Many runs from one file", ":material/playlist_play:"),
    ("pages/playground.py", "Playground", "Try one prompt on up to three models", ":material/chat:"),
    ("pages/report.py", "Report", "A report for stakeholders, and downloads", ":material/description:"),
)


def start_page(title: str, sentence: str = "") -> Experiment | None:
    """Set up the page, draw sidebar and heading, and return the experiment chosen in the sidebar, if any."""
    st.set_page_config(
        page_title=f"{title} – Sliding-Window Merging Studio",
        page_icon=str(ASSETS / "icon.svg"),
        layout="wide",
        initial_sidebar_state=SIDEBAR,
    )
    st.html(ASSETS / "style.css")
    st.logo(ASSETS / "logo.svg", icon_image=ASSETS / "icon.svg", size="large")
    require_login()
    if "--demo" in sys.argv[1:]:  # streamlit run app.py -- --demo [EXPERIMENT]
        os.environ.setdefault("SWM_DEMO", (sys.argv[sys.argv.index("--demo") + 1 :] or [f"{EXAMPLE}demo"])[0])
    experiments, broken = [], []
    with shown_errors():
        experiments, broken = list_experiments()
    with st.sidebar:
        experiment = _choose(experiments)
        if experiment:
            st.caption(_conditions(experiment))
        _steps(experiment)
        _running(experiments)
    for message in [*broken, *(experiment.readable_runs()[1] if experiment else [])]:
        st.warning(plain(message), icon=":material/warning:")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="heading"):
        st.title(title, anchor=False, width="content")
        if sentence:
            st.markdown(f":gray[{sentence}]", width="content")
    _tell_if_gone(experiment)
    show_tour(title, experiments)
    return experiment


def require_experiment(experiment: Experiment | None) -> Experiment:
    """The experiment; without one, the page ends with a link to create it."""
    if experiment is None:
        st.info("There are no experiments yet.", icon=":material/science:")
        st.page_link("pages/experiment.py", label="Create an experiment", icon=":material/add:")
        st.stop()
    return experiment


def _conditions(experiment: Experiment) -> str:
    """A line on what the numbers of all pages were measured with."""
    s = experiment.settings
    whose = " · read-only example" if is_shipped(experiment.folder) else ""
    whose = f" · belongs to {plain(experiment.owner)}" if experiment.owner else whose
    whose = " · read-only demo" if demo_experiment() else whose
    texts = Path(s.texts).name if Path(s.texts).is_absolute() else s.texts
    names = plain(f"{Path(s.model).name} · {texts}")
    return f"{names} {s.count} × {s.length} tokens · seed {s.seed}{whose}"


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show an SwmError as a message instead of a traceback, and end the page there."""
    try:
        yield
    except SwmError as error:
        st.error(plain(str(error)), icon=":material/error:")
        st.stop()


def command_line(*arguments: str, before: Sequence[str] = ()) -> None:
    """A small button that shows the command that does the same as the page.

    Args:
        before: another command, to run first.
    """
    given = [each for each in (before, arguments) if each]
    if arguments[1:] and arguments[1] in list_names():
        lines = page_commands(Experiment.open(arguments[1]), given)
    else:
        lines = [shlex.join(["python", "-m", "swm", *each]) for each in given]
    show_commands(lines)


def show_commands(lines: Sequence[str]) -> None:
    """A small button that shows commands."""
    with st.popover("Command line", icon=":material/terminal:", type="tertiary"):
        st.code("\n".join(lines), language="bash", wrap_lines=True)


def job_panel(
    target: Target,
    draw: Callable[[State], None] | None = None,
    version: Callable[[], int] | None = None,
    was_active: bool = False,
) -> None:
    """A job's progress or outcome, with a button to cancel it; updates itself while the job runs.

    Only this part of the page is redrawn each second, so that no click elsewhere is lost in a redraw. The whole page is
    redrawn when the job ends, or when `version` changes.

    Args:
        draw: draws what else changes while the job runs, below the progress.
        version: a number that changes with the files that the rest of the page shows.
        was_active: whether the job ran before the page read its files: if it has ended since, they are read again.
    """
    active, drawn = was_active or target.state().active, version() if version else 0

    @st.fragment(run_every=1.0 if active else None)
    def panel() -> None:
        state = target.state()
        with shown_errors():
            job_status(state)
            if (
                state.active
                and not target.read_only
                and st.button("Cancel", key=f"cancel_{target.folder}", icon=":material/cancel:")
            ):
                cancel(target)
                st.toast("Stopping after the current step. Finished work is kept.")
            if draw:
                draw(state)
        if active and (not state.active or (version and version() != drawn)):
            st.rerun()

    panel()


def read_only_reason(target: Target) -> str:
    """Why whoever looks at the page cannot change a target; empty if they can."""
    if not target.read_only:
        return ""
    if target.fixed:
        return "This example is read-only. Copy it, or create an experiment of your own."
    return f"This belongs to {plain(target.owner)}. Copy it to change it."


def start_button(
    label: str, target: Target, stage: str, arguments: list[str], key: str, blocked: str = "", primary: bool = True
) -> None:
    """A button that starts a job; disabled with the reason beside it if the target is read-only or `blocked`."""
    reason = read_only_reason(target) or blocked
    with st.container(horizontal=True, vertical_alignment="center"):
        kind: Any = "primary" if primary else "secondary"
        if st.button(label, type=kind, disabled=bool(reason), key=key):
            start(target, stage, arguments)
            st.rerun()
        if reason:
            st.caption(reason)


def job_bar(state: State, name: str = "") -> None:
    """How far a running job is: a bar that is full only once it has ended, or a line while the total is unknown."""
    doing = f"{name}{state.stage}: {plain(state.text or state.status)}"
    text = " · ".join([doing, duration(state.seconds), *time_left(state)])
    if state.total:
        st.progress(min(0.99, state.done / state.total), text=text)
    else:
        st.caption(f":material/hourglass_top: {text}")


def time_left(state: State) -> list[str]:
    """How long the step that runs will still take, in words; none if that cannot be foretold yet."""
    return [f"{about(state.seconds_left)} left in this step"] if state.seconds_left else []


def job_status(state: State) -> None:
    """A progress bar for a running job, or a line on how it ended."""
    if state.active:
        job_bar(state)
    elif state.status == "failed":
        st.error(f"{state.stage} failed: {plain(state.error)}", icon=":material/error:")
    elif state.status == "interrupted":
        st.warning(f"{state.stage} was interrupted. {plain(state.error)}", icon=":material/warning:")
    elif state.status == "cancelled":
        kept = "" if state.stage == "export" else " Finished work is kept."
        st.info(f"{state.stage} was cancelled.{kept}", icon=":material/cancel:")
    elif state.status == "done":
        st.caption(f"{state.stage} took {duration(state.seconds)}")
        if written := exported(state):
            st.code(written, language=None)


def exported(state: State) -> str | None:
    """The file or folder that a job of this app exported, if it is still there."""
    path = state.command[3] if state.stage == "export" and len(state.command) > 3 else ""
    return path if Path(path).is_absolute() and Path(path).exists() else None


def _choose(experiments: list[Experiment]) -> Experiment | None:
    """The experiment that all pages show, chosen in the sidebar: what the address newly says, or the last choice."""
    if not experiments:
        return None
    demo = demo_experiment()
    experiments = sorted(experiments, key=lambda listed: listed.name not in (demo, f"{EXAMPLE}{demo}"))
    names, state = [experiment.name for experiment in experiments], st.session_state
    address, before = st.query_params.get("experiment", ""), state.get(CHOSEN, "")
    late, until = state.get("experiment_left", ("", 0.0))  # a click can still carry the address before the last change
    new = address != state.get("experiment_in_address", "") and not (address == late and time.monotonic() < until)
    asked = (new and address) or before  # a link, or the browser's Back; or the last choice
    # old links lack the prefix; where there is none of that name, what was shown stays
    name = next((one for one in (asked, f"{EXAMPLE}{asked}", before) if one in names), names[0])
    if asked and asked not in (name, name.removeprefix(EXAMPLE)):
        state["experiment_gone"] = asked, asked == before
    state["experiment"] = name  # on a page just opened, or where it was deleted, the browser shows another one
    st.selectbox(
        "Experiment",
        names,
        key="experiment",
        help="All pages show this experiment.",
        on_change=_chosen_by_hand,
        args=(experiments,),
    )
    if name != state.get("experiment_in_address"):
        state["experiment_left"] = state.get("experiment_in_address", ""), time.monotonic() + LATE_SECONDS
    state[CHOSEN] = state["experiment_in_address"] = name
    set_address(experiment=name)  # always there, so that it can be shared
    return experiments[names.index(name)]


def _tell_if_gone(experiment: Experiment | None) -> None:
    """Say that the experiment shown last was deleted or renamed, and end the page: what was clicked was about that."""
    name, was_shown = st.session_state.pop("experiment_gone", ("", False))
    if not name or experiment is None:
        return
    if not was_shown:  # of a link
        st.warning(f"There is no experiment named {plain(name[:64])}. This is {experiment.name}.")
        return
    end_as_gone(name, f"The sidebar now shows {experiment.name}.", f"Continue with {experiment.name}")


def _chosen_by_hand(experiments: list[Experiment]) -> None:
    st.session_state[CHOSEN] = st.session_state["experiment"]
    _forget_missing_study(experiments)


def _forget_missing_study(experiments: list[Experiment]) -> None:
    """Where the experiment chosen lacks the study shown last, Studies opens on one that it has."""
    kind, chosen = st.session_state.get(f"kept_{STUDY}"), st.session_state["experiment"]
    if not any(listed.name == chosen and listed.changed(f"studies/{kind}.json") for listed in experiments):
        forget_choice(STUDY)


def _steps(experiment: Experiment | None) -> None:
    here = {"experiment": experiment.name} if experiment else {}
    st.page_link("app.py", label="Home", icon=":material/home:", query_params=here)
    done = steps_done(experiment) if experiment else {}
    for page, label, help_text in STEPS:
        icon = ":material/check_circle:" if done.get(label) else ":material/radio_button_unchecked:"
        st.page_link(page, label=label, icon=icon, help=help_text, query_params=here)
    for page, label, help_text, icon in ROOMS:
        st.page_link(page, label=label, icon=icon, help=help_text, query_params=here)


def steps_done(experiment: Experiment) -> dict[str, bool]:
    """Which steps of the sidebar have results."""
    runs = [run for run in experiment.runs() if not run.is_baseline]
    return {
        "Experiment": True,
        "Redundancy": bool(experiment.metrics_measured()),
        "Preview": bool(experiment.rules_searched()),
        "Run": any(run.read_unless_gone(lambda each: each.stage) in ("merged", "recovered") for run in runs),
        "Compare": any(run.is_evaluated for run in runs),
    }


def _running(experiments: list[Experiment]) -> None:
    """The jobs that run, redrawn while there are any."""
    _watch_again_once()
    st.fragment(run_every=2.0 if active_targets(experiments) else None)(_show_running)(experiments)


@st.cache_resource(show_spinner=False)
def _watch_again_once() -> None:
    """Once in the life of the app, so that jobs sent to a cluster before it was restarted are not taken for ended."""
    watch_again(lambda: all_targets(list_experiments()[0]))


def _show_running(experiments: list[Experiment]) -> None:
    jobs = active_targets(experiments)
    if jobs:
        st.caption("Running now")
    for target, state in jobs:
        whose = f", of {by}" if (by := state.person or target.owner) else ""
        job_bar(state, f"{plain(target.full_name + whose)}, ")
