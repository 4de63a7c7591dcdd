"""Run page: merge, heal and evaluate; what it shows is read from the run's own files."""

from dataclasses import replace
from typing import Any

import streamlit as st

from pages.shared.choices import check_address, stop_if_gone
from pages.shared.fields import Form, number
from pages.shared.frame import (
    command_line,
    job_panel,
    read_only_reason,
    require_experiment,
    show_commands,
    shown_errors,
    start_page,
)
from pages.shared.healing import healing_settings
from pages.shared.live import layers_picture
from pages.shared.navigation import next_step, number_from_address
from pages.shared.plain import plain
from pages.shared.run_controls import NEW, controls, limit_arguments, usual_limit
from pages.shared.run_progress import follow, partial_checkpoint
from pages.shared.target import lost_layers
from swm.disk.names import check_name
from swm.errors import ExperimentError
from swm.jobs.child import start
from swm.plan import DEFAULT_RULE, WHOLE_WIDTH, WIDTH_METHODS, MergePlan, WidthCut, parse_windows
from swm.registry import MERGE_RULES
from swm.reporting.commands import run_commands, width_arguments, windows_arguments
from swm.reporting.glossary import title_of
from swm.search.kept_path import kept_path
from swm.settings import DEFAULT_THRESHOLD, LEAST_THRESHOLD, RecoverySettings
from swm.workspace.estimate import about, estimate_run
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE, Run
from swm.workspace.units import gib

Planned = tuple[MergePlan, float | None, float | None]  # with its threshold and similarity, if it is of a search
ENTRIES = ("run_name", "run_threshold", "run_windows", "run_rule", "run_limit", "run_width", "run_width_by")
PLAN = ("merge_at", "windows", "merge_by")  # of the address
THRESHOLD = "As set on the Preview page. A window grows while the similarity is at least this."
WIDTH = "Also prunes this share of the remaining layers' weights: groups of attention heads and MLP channels."
RULE = "How the layers of a window become one layer. rdsc is the paper's formula."


def new_run(experiment: Experiment, count: int) -> None:
    """The form of a new run: its settings, what it will need, and the button that starts it."""
    forget_old_entries(experiment)
    template, form = st.session_state.get("run_template", {}), Form("run")
    check_address("merge_by", list(MERGE_RULES), "merge rule")
    top = st.container()  # the layers and the action stand above the settings that they follow from
    with st.container(border=True):
        left, right = st.columns(2, gap="large")
        name = form.text(
            "Name", f"run-{count + 1}", place=left, max_chars=64, key="run_name", help="Use a-z, 0-9 and -."
        )
        problem_of_name = left.empty()  # always there, so that no field below moves
        threshold, windows, rule = which_windows(form, left, template or st.query_params)
        limit = document_limit(form, left, experiment, template.get("limit"))
        copied = template.get("width", WHOLE_WIDTH)
        with left.expander("Prune width as well", expanded=bool(copied.ratio) or "run_width" in st.query_params):
            width = width_cut(form, copied)
        with right:
            recovery, healing = healing_settings(form, template)
    form.drawn()
    st.session_state["run_origin"] = origin(experiment)
    plan_options = windows_arguments(windows) if windows.strip() else ["--threshold", str(threshold)]
    with top:
        if plan := planned(experiment, windows, threshold, rule, width):
            layers_picture(plan[0], experiment.model_facts, key="run_planned")
            problem = show_problem(experiment, plan[0], recovery, limit)
            problem = name_problem(experiment, name, plan[0], problem_of_name) or problem
            offer_start(experiment, name, plan, [*healing, *limit_arguments(limit)], problem)
        else:
            st.warning(f"Threshold {threshold:g} has not been searched with rule {rule}. Search it on Preview.")
            next_step("pages/preview.py", "Open the Preview page")
    plan_options += ["--rule", rule, *width_arguments(width)]
    command_line("run", experiment.name, name, *plan_options, *healing, *limit_arguments(limit))


def offer_start(experiment: Experiment, name: str, plan: Planned, arguments: list[str], problem: str) -> None:
    """The button that creates the run and starts it; disabled with the reason beside it if there is one."""
    reason = read_only_reason(experiment) or problem
    with st.container(horizontal=True, vertical_alignment="center"):
        label = "Merge and evaluate" if "--no-recovery" in arguments else "Merge, heal and evaluate"
        clicked = st.button(label, type="primary", disabled=bool(reason), key="run_start")
        if reason:
            st.caption(reason)
    if clicked:
        run = experiment.create_run(check_name(name), *plan)
        start(run, "run", ["run", experiment.name, name, *arguments])
        st.session_state["run_next"] = name
        for key in ("run_template", "run_name"):
            st.session_state.pop(key, None)
        st.rerun()


def name_problem(experiment: Experiment, name: str, plan: MergePlan, place: Any) -> str:
    """Show below the field why a run cannot have this name; returns it in short, empty if it can."""
    try:
        check_name(name)
        if name == BASELINE:
            raise ExperimentError(f"{name} is taken. Choose another name.")
        if (run := Run(experiment, name)).is_there() and run.plan != plan:
            raise ExperimentError(f"Run {name} already exists with other windows. Choose another name.")
    except ExperimentError as error:
        place.error(plain(str(error)), icon=":material/error:")
        return "The name cannot be used, see above."
    return ""


def which_windows(form: Form, place: Any, initial: Any) -> tuple[float, str, str]:
    """Threshold, windows by hand, and merge rule.

    Args:
        initial: what the fields begin with, by name: of a duplicated run, or of the address.
    """
    rules = list(MERGE_RULES)
    initial_rule = initial.get("merge_by") if initial.get("merge_by") in MERGE_RULES else DEFAULT_RULE
    tuned = number_from_address("merge_at", DEFAULT_THRESHOLD, LEAST_THRESHOLD, 1.0)
    windows = place.text_input(
        "Windows",
        initial.get("windows", "")[:400],
        key="run_windows",
        persist_state="session",
        placeholder="27-28,25-26",
        help="First and last layer of each, both included. Leave it empty to name a threshold.",
    )
    threshold = tuned
    if not windows.strip():
        threshold = number(
            "Or the threshold of a search",
            LEAST_THRESHOLD,
            1.0,
            tuned,
            place=place,
            step=0.001,
            format="%.4f",
            key="run_threshold",
            persist_state="session",
            help=THRESHOLD,
        )
    rule = place.selectbox(
        "Merge rule",
        rules,
        index=rules.index(initial_rule),
        key="run_rule",
        persist_state="session",
        help=RULE,
        format_func=lambda name: title_of(MERGE_RULES[name]),
    )
    form.kept("merge_at", threshold, DEFAULT_THRESHOLD)
    form.kept("windows", windows, "")
    form.kept("merge_by", rule, DEFAULT_RULE)
    return threshold, windows, rule


def origin(experiment: Experiment) -> tuple[str, ...]:
    """The experiment, and the plan in the address."""
    return (experiment.name, *(st.query_params.get(name, "") for name in PLAN))


def forget_old_entries(experiment: Experiment) -> None:
    """What was entered stays when the page is left; another experiment, or a plan in the address, starts afresh."""
    name, *linked = origin(experiment)
    last_name, *last_linked = st.session_state.get("run_origin", ("",))
    if last_name not in ("", name) and linked == last_linked:  # a plan that was entered for the other experiment
        for parameter in PLAN:
            st.query_params.pop(parameter, None)
    if name != last_name or (any(linked) and linked != last_linked):
        for key in ENTRIES:
            st.session_state.pop(key, None)


def document_limit(form: Form, place: Any, experiment: Experiment, copied: int | None) -> int | None:
    """Documents per task, by default as many as for the original, to keep runs comparable; None for all."""
    usual = usual_limit(experiment.run(BASELINE))
    if usual is None and copied is None:
        place.caption("Evaluates all documents of each task, as for the original.")
        return None
    return form.number(
        "Documents per task",
        1,
        20_000,
        min(copied or usual or 100, 20_000),
        place=place,
        key="run_limit",
        help="More documents: smaller error bars, longer runs. Must match the original's for a comparison.",
    )


def width_cut(form: Form, copied: WidthCut) -> WidthCut:
    """How much width to prune, and by which method."""
    columns, methods = st.columns([2, 3], gap="small"), list(WIDTH_METHODS)
    percent = form.number(
        "Prune width by, %",
        0.0,
        90.0,
        100 * copied.ratio,
        place=columns[0],
        step=5.0,
        format="%.1f",
        key="run_width",
        help=WIDTH,
    )
    method = form.choice(
        "Method",
        methods,
        copied.method,
        place=columns[1],
        disabled=not percent,
        help=" ".join(f"{name}: {text}" for name, text in WIDTH_METHODS.items()),
        key="run_width_by",
    )
    return WidthCut(percent / 100, method) if percent else WHOLE_WIDTH


def show_problem(experiment: Experiment, plan: MergePlan, recovery: RecoverySettings | None, limit: int | None) -> str:
    """Show what the run needs, or which layer its model lacks; returns why it cannot start, empty if it can."""
    if lost := lost_layers(experiment, plan):
        st.error(lost)
        return "The merged model could not write text, see above."
    return "" if show_needs(experiment, plan, recovery, limit) else "It does not fit on this machine, see above."


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


def planned(experiment: Experiment, windows: str, threshold: float, rule: str, width: WidthCut) -> Planned | None:
    """Plan, threshold and similarity; None if the threshold has not been searched yet."""
    if windows.strip():
        return MergePlan(experiment.layer_count, parse_windows(windows), rule, width), None, None
    path = kept_path(experiment, rule)
    step = path.plan_at(threshold) if path else None
    return step and (replace(step.plan, width=width), threshold, step.similarity)


def progress(run: Run) -> None:
    """The run's layers, its job, its loss and its log."""
    layers_picture(run.plan, run.experiment.model_facts, key="run_layers")
    job_panel(run, lambda state: follow(run, state))
    state, unfinished = run.state(), run.settings.get("recovery_started")
    if unfinished and not state.active:
        st.info(partial_checkpoint(run, unfinished), icon=":material/info:")
    if not state.active and not run.read_only:
        controls(run)
    show_commands(run_commands(run))


experiment = require_experiment(start_page("Run", "Merge windows, heal the smaller model with LoRA, and evaluate it."))
with shown_errors():
    runs = {run.name: run for run in experiment.runs() if not run.is_baseline}
    if st.session_state.get("run_next") in (NEW, *runs):
        st.session_state["run"] = st.session_state.pop("run_next")
    elif st.session_state.get("run_of") == experiment.name:
        stop_if_gone("run", [*runs, NEW], "Run")
    if "run_of" not in st.session_state:  # later the address can be of an experiment chosen before
        check_address("run", [*runs, NEW], "run")
    st.session_state["run_of"] = experiment.name
    chosen = st.selectbox("Run", [*runs, NEW], key="run", bind="query-params", help="Open a run, or create a new one.")
    if chosen in runs:
        progress(runs[chosen])
        next_step("pages/compare.py", "Compare with the original")
    else:
        new_run(experiment, len(runs))
