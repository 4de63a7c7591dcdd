"""Run page: merge, heal and evaluate; what it shows is read from the run's own files."""

from dataclasses import replace
from typing import Any

import streamlit as st

from pages.shared.control import offer_control
from pages.shared.frame import (
    READ_ONLY,
    caption,
    command_line,
    job_panel,
    next_step,
    number_from_address,
    require_experiment,
    shown_errors,
    start_page,
)
from pages.shared.healing import healing_settings
from pages.shared.live import layers_picture
from pages.shared.manage_run import manage
from pages.shared.run_progress import follow, partial_checkpoint
from swm.jobs.child import start
from swm.plan import DEFAULT_RULE, WHOLE_WIDTH, WIDTH_METHODS, MergePlan, WidthCut, parse_windows
from swm.registry import MERGE_RULES
from swm.reporting.arguments import plan_arguments, recovery_arguments, width_arguments, windows_arguments
from swm.reporting.commands import run_commands
from swm.search.kept_path import kept_path
from swm.settings import RecoverySettings
from swm.workspace.estimate import about, estimate_run
from swm.workspace.experiments import Experiment
from swm.workspace.names import check_name
from swm.workspace.runs import BASELINE, Run
from swm.workspace.units import gib

NEW, REMAINING = "new run", "Run the remaining steps"
THRESHOLD = "As set on the Preview page. A window grows while the similarity is at least this."
WIDTH = "Also prunes this share of the remaining layers' weights: groups of attention heads and MLP channels."
RULE = "How the layers of a window become one layer. rdsc is the paper's formula."


def new_run(experiment: Experiment, count: int) -> None:
    """The form of a new run: its settings, what it will need, and the button that starts it."""
    template = st.session_state.get("run_template", {})
    initial, rules = template or st.query_params, list(MERGE_RULES)
    initial_rule = initial.get("merge_by") if initial.get("merge_by") in MERGE_RULES else DEFAULT_RULE
    with st.container(border=True):
        left, right = st.columns(2, gap="large")
        name = left.text_input("Name", f"run-{count + 1}", max_chars=64, key="run_name", help="Use a-z, 0-9 and -.")
        tuned = number_from_address("merge_at", 0.9, 0.01, 1.0)
        threshold = left.number_input(
            "Threshold", 0.01, 1.0, tuned, 0.001, format="%.3f", key="run_threshold", help=THRESHOLD
        )
        windows = left.text_input(
            "Or windows by hand",
            initial.get("windows", "")[:400],
            key="run_windows",
            placeholder="27-28,25-26",
            help="First and last layer of each, both included. Overrides the threshold.",
        )
        rule = left.selectbox("Merge rule", rules, index=rules.index(initial_rule), key="run_rule", help=RULE)
        with left:
            width = width_cut(template.get("width", WHOLE_WIDTH))
        limit = document_limit(left, experiment, template.get("limit"))
        with right:
            recovery, healing = healing_settings(template)
    plan_options = windows_arguments(windows) if windows.strip() else ["--threshold", str(threshold)]
    plan = planned(experiment, windows, threshold, rule, width)
    if plan is None:
        st.warning(f"Threshold {threshold:g} has not been searched with rule {rule}. Search it on the Preview page.")
        next_step("pages/preview.py", "Open the Preview page")
    else:
        layers_picture(plan[0], experiment.model_facts, key="run_planned")
        fits = show_needs(experiment, plan[0], recovery, limit)
        blocked = experiment.read_only or not fits
        reason = READ_ONLY if experiment.read_only else "" if fits else "It does not fit on this machine, see above."
        with st.container(horizontal=True, vertical_alignment="center"):
            clicked = st.button("Merge, heal and evaluate", type="primary", disabled=blocked, key="run_start")
            st.caption(reason)
        if clicked:
            run = experiment.create_run(check_name(name), *plan)
            start(run, "run", ["run", experiment.name, name, *healing, *limit_arguments(limit)])
            st.session_state["run_next"] = name
            st.session_state.pop("run_template", None)
            st.rerun()
    plan_options += ["--rule", rule, *width_arguments(width)]
    command_line("run", experiment.name, name, *plan_options, *healing, *limit_arguments(limit))


def document_limit(place: Any, experiment: Experiment, copied: int | None) -> int | None:
    """Documents per task, by default as many as for the original, to keep runs comparable; None for all."""
    usual = usual_limit(experiment.run(BASELINE))
    if usual is None and copied is None:
        place.caption("Evaluates all documents of each task, as for the original.")
        return None
    return int(
        place.number_input(
            "Documents per task",
            1,
            20_000,
            min(copied or usual or 100, 20_000),
            key="run_limit",
            help="More documents: smaller error bars, longer runs. Must match the original's for a comparison.",
        )
    )


def usual_limit(run: Run) -> int | None:
    """Documents per task that the run, or else the original, was scored on; None for all."""
    scores = run.scores() or run.experiment.run(BASELINE).scores() or {"limit": 100}
    limit: int | None = scores["limit"]
    return limit


def limit_arguments(limit: int | None) -> list[str]:
    return ["--limit", "none" if limit is None else str(limit)]


def width_cut(copied: WidthCut) -> WidthCut:
    """How much width to prune, and by which method."""
    columns, methods = st.columns([2, 3], gap="small"), list(WIDTH_METHODS)
    percent = columns[0].number_input(
        "Prune width by, %", 0.0, 90.0, 100 * copied.ratio, 5.0, format="%.1f", key="run_width", help=WIDTH
    )
    method = columns[1].selectbox(
        "Method",
        methods,
        index=methods.index(copied.method),
        disabled=not percent,
        help=" ".join(f"{name}: {text}" for name, text in WIDTH_METHODS.items()),
        key="run_width_by",
    )
    return WidthCut(percent / 100, method) if percent else WHOLE_WIDTH


def show_needs(experiment: Experiment, plan: MergePlan, recovery: RecoverySettings | None, limit: int | None) -> bool:
    """Show the time, memory and disk space that the run needs; whether it fits on this machine."""
    evaluated = experiment.run(BASELINE).scores()
    evaluations = 1 + (recovery is not None) + (not evaluated or evaluated.get("limit") != limit)
    facts, cost = experiment.model_facts, experiment.cost()
    needs = estimate_run(facts, cost, plan, recovery, limit, experiment.folder, evaluations=evaluations)
    for problem in needs.problems():
        st.error(problem, icon=":material/memory:")
    times = " · ".join(f"{stage} {about(seconds)}" for stage, seconds in needs.seconds.items())
    st.caption(
        (f"Takes {needs.time} ({times}). " if times else "")
        + f"Needs {gib(needs.memory_bytes)} of memory ({gib(needs.free_memory_bytes)} free) and "
        f"{gib(needs.disk_bytes)} of disk space ({gib(needs.free_disk_bytes)} free)."
    )
    return not needs.problems()


def planned(
    experiment: Experiment, windows: str, threshold: float, rule: str, width: WidthCut
) -> tuple[MergePlan, float | None, float | None] | None:
    """Plan, threshold and similarity; None if the threshold has not been searched yet."""
    if windows.strip():
        return MergePlan(experiment.layer_count, parse_windows(windows), rule, width), None, None
    path = kept_path(experiment, rule)
    step = path.plan_at(threshold) if path else None
    return step and (replace(step.plan, width=width), threshold, step.similarity)


def controls(run: Run) -> None:
    """A button for each stage that can start now, and one to duplicate the run."""
    name = (run.experiment.name, run.name)
    windows = ",".join(map(str, run.plan.windows))
    unfinished = run.settings.get("recovery_started")
    recovery = unfinished or run.settings.get("recovery")
    heal = recovery_arguments(recovery) if recovery else ["--preset", "quick"]
    again = ["--again"] if run.stage == "recovered" else []
    limit = limit_arguments(usual_limit(run))
    actions = {
        "Merge": ["merge", *name, *plan_arguments(run.plan)],
        "Resume healing" if unfinished else "Heal with LoRA": ["recover", *name, *heal, *again],
        "Evaluate": ["evaluate", *name, *limit],
        "Measure speed": ["time", *name],
        REMAINING: ["run", *name, *heal, *limit],
    }
    buttons = st.container(horizontal=True, vertical_alignment="center")
    finished = run.stage == "recovered" and not unfinished and run.is_evaluated and run.timing() is not None
    for label, arguments in actions.items():
        allowed = run.stage == "planned" if label == "Merge" else run.stage != "planned"
        if label == REMAINING:
            allowed = not finished
        if buttons.button(label, key=f"run_do_{label}", disabled=not allowed):
            start(run, arguments[0], arguments)
            st.rerun()
    if buttons.button("Duplicate and edit", key="run_duplicate"):
        duplicate(run, windows)
    if (chosen := manage(run, buttons)) is not None:
        st.session_state["run_next"] = chosen or NEW
        st.rerun()
    st.caption(
        "The other steps need the merged model."
        if run.stage == "planned"
        else f"Merged already.{' No steps remain.' if finished else ''}"
    )
    offer_control(run, usual_limit(run))


def duplicate(run: Run, windows: str) -> None:
    """Open the form of a new run, filled in with this run's settings."""
    recovery = run.settings.get("recovery") or run.settings.get("recovery_started")
    for key in [key for key in st.session_state if str(key).startswith("run_")]:
        del st.session_state[key]
    st.session_state.update(
        run_next=NEW,
        run_template={
            "windows": windows,
            "merge_by": run.plan.rule,
            "width": run.plan.width,
            "limit": (run.scores() or {}).get("limit") or 100,
            "recovery": recovery,
        },
    )
    st.rerun()


def progress(run: Run) -> None:
    """The run's layers, its job, its loss and its log."""
    layers_picture(run.plan, run.experiment.model_facts, key="run_layers")
    job_panel(run, lambda state: follow(run, state))
    state, unfinished = run.state(), run.settings.get("recovery_started")
    if unfinished and not state.active:
        st.info(partial_checkpoint(run, unfinished), icon=":material/info:")
    if not state.active and not run.read_only:
        controls(run)
    with st.expander("Command-line equivalent"):
        st.code("\n".join(run_commands(run)), language="bash", wrap_lines=True)


experiment = require_experiment(start_page("Run", "Merge windows, heal the smaller model with LoRA, and evaluate it."))
caption(experiment)
with shown_errors():
    runs = {run.name: run for run in experiment.runs() if not run.is_baseline}
    if st.session_state.get("run_next") in (NEW, *runs):
        st.session_state["run"] = st.session_state.pop("run_next")
    chosen = st.selectbox("Run", [*runs, NEW], key="run", bind="query-params", help="Open a run, or create a new one.")
    if chosen in runs:
        progress(runs[chosen])
        next_step("pages/compare.py", "Compare with the original")
    else:
        new_run(experiment, len(runs))
