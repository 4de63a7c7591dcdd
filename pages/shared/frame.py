"""What every page begins with: page settings, the sidebar with experiment and steps, errors shown kindly."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError

from swm.errors import SwmError
from swm.jobs.child import active_targets, cancel
from swm.jobs.tracking import Target
from swm.workspace.experiments import Experiment, list_experiments
from swm.workspace.files import demo_experiment
from swm.workspace.names import EXAMPLE
from swm.workspace.runs import Run
from swm.workspace.state import State
from swm.workspace.units import duration

AVERAGE = "Mean accuracy of the zero-shot tasks."
PERPLEXITY = "On held-out text; lower is better."
SPEED = "While generating, measured in turn with the original."
LINKS = re.compile(r"(://|www|@)")  # addresses become links unless something invisible parts them
MARKUP = re.compile(r"([\\`\[\]$<*])")
ASSETS = Path(__file__).parents[2] / "assets"
STEPS = (
    ("pages/experiment.py", "Experiment", "Choose a model and a calibration text"),
    ("pages/redundancy.py", "Redundancy", "See how alike the layers are"),
    ("pages/preview.py", "Preview", "Tune the threshold, see which windows merge"),
    ("pages/run.py", "Run", "Merge, heal with LoRA, evaluate"),
    ("pages/compare.py", "Compare", "Scores, perplexity, speed and size before and after"),
    ("pages/studies.py", "Studies", "Every method at several depths, on this model"),
    ("pages/sweeps.py", "Sweeps", "Many runs from one file"),
    ("pages/playground.py", "Playground", "One prompt, up to three models"),
    ("pages/report.py", "Report", "One page for stakeholders, and the downloads"),
)


def start_page(title: str, sentence: str = "") -> Experiment | None:
    """Set up the page and draw sidebar and heading; gives the experiment chosen in the sidebar."""
    st.set_page_config(
        page_title=f"{title} – Sliding-Window Merging Studio", page_icon=str(ASSETS / "icon.svg"), layout="wide"
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
        _steps(experiment)
        _running(experiments)
    for message in [*broken, *(experiment.readable_runs()[1] if experiment else [])]:
        st.warning(plain(message), icon=":material/warning:")
    st.title(title, anchor=False)
    if sentence:
        st.markdown(f":gray[{sentence}]")
    return experiment


def require_login() -> None:
    """With an [auth] section in Streamlit's secrets nobody sees a page before logging in there (OpenID Connect).

    A list `allowed` of addresses in a section [swm] lets only these in. Secrets that cannot be read let nobody in.
    """
    try:
        secrets = dict(st.secrets)
    except StreamlitSecretNotFoundError:
        if any(Path(file).expanduser().exists() for file in st.get_option("secrets.files")):
            st.error("The login's settings (secrets.toml) cannot be read. Correct the file and reload this page.")
            st.stop()
        return
    if "auth" not in secrets:
        return
    if not st.user.get("is_logged_in", False):
        st.title("Sliding-Window Merging Studio", anchor=False)
        if st.button("Log in", type="primary", icon=":material/login:"):
            st.login()
        st.stop()
    allowed, email = secrets.get("swm", {}).get("allowed"), st.user.get("email")
    listed = isinstance(allowed, list) and email in allowed
    if allowed is not None and (not listed or st.user.get("email_verified") is False):
        st.error(f"{plain(str(email))} may not use this server. Ask whoever runs it.", icon=":material/block:")
        if st.button("Log out"):
            st.logout()
        st.stop()
    if st.sidebar.button("Log out", icon=":material/logout:"):
        st.logout()


def plain(text: str) -> str:
    """Text of others for a place that shows Markdown: no links, pictures, colours or formulas come out of it."""
    text = text.encode("utf-8", "replace").decode()  # halves of characters cannot be sent to a browser
    return MARKUP.sub(r"\\\1", LINKS.sub("\\1\u2060", text))


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
    shipped = " · read-only demo" if demo_experiment() else shipped
    texts = Path(s.texts).name if Path(s.texts).is_absolute() else s.texts
    names = plain(f"{Path(s.model).name} · {texts}")
    st.caption(f"{names} {s.count} × {s.length} tokens · seed {s.seed}{shipped}")


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show what the user can mend in place of a traceback, and end the page there."""
    try:
        yield
    except SwmError as error:
        st.error(plain(str(error)), icon=":material/error:")
        st.stop()


def command_line(*arguments: str) -> None:
    """The same from the command line."""
    with st.expander("The same from the command line"):
        st.code(shlex.join(["python", "-m", "swm", *arguments]), language="bash", wrap_lines=True)


def go_to(page: str, experiment: str) -> None:
    """Open a page with another experiment; the sidebar's choice is made before it is drawn the next time."""
    st.session_state["next_experiment"] = experiment
    st.switch_page(page)


def number_from_address(name: str, default: float, low: float, high: float) -> float:
    """A number that the page before put into the address; the default when there is none that can be."""
    try:
        value = float(st.query_params.get(name, default))
    except ValueError:
        return default
    return value if low <= value <= high else default


def next_step(page: str, label: str, **query: str) -> None:
    """A link to the page that comes next; `query` goes into its address beside the experiment."""
    experiment = st.session_state.get("experiment")
    params = {**({"experiment": experiment} if experiment else {}), **query}
    st.page_link(page, label=label, icon=":material/arrow_forward:", query_params=params)


def run_metrics(row: dict[str, Any]) -> None:
    """One line of numbers of a row of `compare`, each with its difference to the original."""
    deltas = row["deltas"]
    points = None if deltas["average"] is None else 100 * deltas["average"]
    shown = [
        ("Layers", f"{row['layers']}", deltas["layers"], "{:+d}", ""),
        ("Parameters", f"{row['parameters'] / 1e6:,.1f} M", deltas["parameters"] / 1e6, "{:+,.1f} M", ""),
        ("Average score", row["average"] and f"{row['average']:.1%}", points, "{:+.1f} points", AVERAGE),
        ("Perplexity", row["perplexity"] and f"{row['perplexity']:,.1f}", deltas["perplexity"], "{:+,.1f}", PERPLEXITY),
        ("Tokens per second", row["tokens_per_second"], deltas["tokens_per_second"], "{:+.1f}", SPEED),
    ]
    for column, (label, value, delta, form, help_text) in zip(st.columns(len(shown)), shown, strict=True):
        text = f"{value:,.1f}" if isinstance(value, float) else value or "–"
        change = None if delta is None else form.format(delta)
        column.metric(label, text, change, "off", help=help_text or None)
    if row["not_compared"]:
        st.caption(plain(" ".join(row["not_compared"])))


def job_panel(
    target: Target, draw: Callable[[State], None] | None = None, version: Callable[[], int] | None = None
) -> None:
    """What a job does or how it ended, with a button to cancel it; follows the job by itself.

    Only this part of the page is drawn anew each second, so that clicks elsewhere are never lost in a page that is
    just being drawn. The whole page follows when the job ends, or when `version` changes.

    Args:
        draw: what else follows the job, below it.
        version: of the files that the rest of the page shows.
    """
    active, drawn = target.state().active, version() if version else 0

    @st.fragment(run_every=1.0 if active else None)
    def panel() -> None:
        state = target.state()
        with shown_errors():
            job_status(state)
            if state.active and st.button("Cancel", key=f"cancel_{target.folder}", icon=":material/cancel:"):
                cancel(target)
                st.toast("It stops after the step it is in; what is finished is kept.")
            if draw:
                draw(state)
        if active and (not state.active or (version and version() != drawn)):
            st.rerun()

    panel()


def job_status(state: State) -> None:
    """One line and a bar on what a job does, or how it ended."""
    if state.active:
        share = min(1.0, state.done / state.total) if state.total else 0.0
        st.progress(share, text=f"{state.stage}: {plain(state.text or state.status)} · {duration(state.seconds)}")
    elif state.status == "failed":
        st.error(f"{state.stage} failed: {plain(state.error)}", icon=":material/error:")
    elif state.status == "interrupted":
        st.warning(f"{state.stage} was interrupted. {plain(state.error)}", icon=":material/warning:")
    elif state.status == "cancelled":
        st.info(f"{state.stage} was cancelled; what was finished is kept.", icon=":material/cancel:")
    elif state.status == "done":
        st.caption(f"{state.stage} took {duration(state.seconds)}")


def _choose(experiments: list[Experiment]) -> Experiment | None:
    if not experiments:
        return None
    demo = demo_experiment()
    experiments = sorted(experiments, key=lambda one: one.name not in (demo, f"{EXAMPLE}{demo}"))
    names = [experiment.name for experiment in experiments]
    wanted = st.session_state.pop("next_experiment", None)
    if wanted is None and "experiment" not in st.session_state:
        wanted = st.query_params.get("experiment") or demo or None
        if wanted not in names and f"{EXAMPLE}{wanted}" in names:  # as links of before say it
            wanted = f"{EXAMPLE}{wanted}"
    if wanted in names:
        st.session_state["experiment"] = wanted
    elif wanted is not None:
        st.warning(f"There is no experiment {plain(wanted[:64])}.")
    if st.session_state.get("experiment") not in names:  # deleted meanwhile
        st.session_state.pop("experiment", None)
    help_text = "Everything on the pages belongs to it."
    name = st.selectbox("Experiment", names, key="experiment", persist_state="session", help=help_text)
    st.query_params["experiment"] = name  # always in the address, so that it can be passed on
    return experiments[names.index(name)]


def _steps(experiment: Experiment | None) -> None:
    st.page_link("app.py", label="Home", icon=":material/home:")
    done = _done(experiment) if experiment else {}
    for page, label, help_text in STEPS:
        icon = ":material/check_circle:" if done.get(label) else ":material/radio_button_unchecked:"
        st.page_link(page, label=label, icon=icon, help=help_text)


def _done(experiment: Experiment) -> dict[str, bool]:
    runs = [run for run in experiment.runs() if not run.is_baseline]
    return {
        "Experiment": True,
        "Redundancy": bool(experiment.metrics_measured()),
        "Preview": bool(experiment.rules_searched()),
        "Run": any(run.stage in ("merged", "recovered") for run in runs),
        "Compare": any(run.is_evaluated for run in runs),
    }


def _running(experiments: list[Experiment]) -> None:
    jobs = active_targets(experiments)
    if not jobs:
        return
    st.caption("Running now")
    for target, state in jobs:
        name = f"{target.experiment.name} / {target.name}" if isinstance(target, Run) else target.name
        share = min(1.0, state.done / state.total) if state.total else 0.0
        st.progress(share, text=f"{name}: {state.stage}, {plain(state.text or state.status)}")
